#!/usr/bin/perl

# Each type of check against real servers of its protocol: nginx, MariaDB, php-fpm, grpcio; good ones and
# bad ones, and what is found to be wrong with these.

use strict;
use warnings;

use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(sleep);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Checks;

plan(skip_all => 'no openssl') unless `openssl version 2>/dev/null`;

my $t = Test::Upsync->new;
my $dir = $t->testdir;
my $built = `$t->{nginx}{binary} -V 2>&1`;

my $authority = authority($t, 'authority');
my $stranger = authority($t, 'stranger');
my $good = $authority->issue('app.example');
my $expired = $authority->issue('app.example', days => -1);
my $client = $authority->issue('client.example');

# Nobody listens there as long as the test runs.
my $nobody = address();
my $silent = responder($t, sub { return 1 })->address;
my $closing = responder($t, sub { receive($_[0], 1); return 0 })->address;
my $resetting = responder($t, sub { receive($_[0], 1); return abort($_[0]) })->address;
my $stranger_greets = responder($t, sub { syswrite $_[0], "SSH-2.0-OpenSSH_9.2\r\n"; return 1 })->address;
my ($full, @fillers) = full();
my %nginx = map { $_ => address() } qw(http tls12 tls13 tls_client tls_expired tls_refusing grpc grpcs);
my $backends = stock_nginx();

# What is checked, by type.
my (@types, %rows);
tcp();
http_();
https();
ssl_hello();
my @absent;
$built =~ /--with-http_v2_module/ ? grpc() : push @absent, 'grpc: nginx has no HTTP/2';
push @absent, 'grpc: no python3-grpcio here' unless has_grpcio();
my $mariadb_port = $t->free_port;
my $mariadb = mariadb($t, $mariadb_port);
my @taken;
$mariadb ? mysql() : push @absent, 'mysql: no MariaDB here';
my $php_port = $t->free_port;
php_fpm($t, $php_port, 'ping.path = /ping') ? fastcgi() : push @absent, 'fastcgi: no php-fpm here';
ajp();

# With rise=2 and fall=3 the server goes up, down and up; with any other numbers it is something else.
my $sequence = '503 200 503 503 503 200 200 503 503 200 200 503 503 503 200 503 503 503 200 200';
my $steady = responder($t, \&answer_by_number)->address;

$t->write_file_expand('nginx.conf', conf());
$t->run;
my $checked;
wait_until {
    $checked = all_checked($t);
    !grep { !is_settled($_) } map { @{ $rows{$_} } } @types;
} 30;
for my $type (@types) {
    subtest $type => sub { verdict($_) for @{ $rows{$type} } };
}
for my $why (@absent) {
    SKIP: { skip $why, 1 }
}

subtest 'what the servers were asked' => \&asked;
subtest 'check_keepalive_requests' => \&kept;
subtest 'port' => \&port;
subtest 'default_down' => \&default_down;
subtest 'rise and fall' => \&rise_and_fall;
subtest 'servers that go and come back' => \&go_and_come;
subtest 'what cannot be' => \&refused;
subtest 'what is odd' => \&warned;

$t->done;

sub address { return '127.0.0.1:' . $t->free_port }

sub port_of { return $_[0] =~ /:(\d+)$/ }

# It is reset, not closed.
sub abort {
    setsockopt $_[0], SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0;
    return 0;
}

# A server that accepts nothing, and whose queue is full.
sub full {
    my $listener = IO::Socket::INET->new(LocalAddr => address(), Listen => 1, ReuseAddr => 1) or die "listen: $!\n";
    my $address = $listener->sockhost . ':' . $listener->sockport;
    return $address, $listener, map { IO::Socket::INET->new(PeerAddr => $address, Blocking => 0) } 1 .. 8;
}

sub stock_nginx {
    my $listen = sub {
        my ($name, $options) = @_;
        return "listen $nginx{$name} " . ($options // '') . '; access_log checks.log checks;';
    };
    my $http2 = $built =~ /--with-http_v2_module/;
    my $certificate = sub { return "ssl_certificate $_[0]{certificate}; ssl_certificate_key $_[0]{key};" };
    my $pong = 'location / { return 200 "pong by $server_port\n"; }';
    # The message of grpc.health.v1 that says SERVING, in its envelope. nginx does not take a POST for a
    # file, but sends it for an error.
    $t->write_file('serving', "\0\0\0\0\2\x08\1");
    my $grpc = $http2 ? <<"EOF" : '';
    server {
        @{[ $listen->('grpc', 'http2') ]}
        listen $nginx{grpcs} ssl http2;
        @{[ $certificate->($good) ]}
        location = /grpc.health.v1.Health/Check {
            if (\$host = grpc_forbidden) { return 403; }
            error_page 404 405 =200 /serving;
        }
        location = /serving {
            internal;
            root $dir;
            default_type application/grpc;
            add_trailer grpc-status 0;
        }
    }
EOF
    # More than anybody wants to read of an answer that is good by its head.
    $t->write_file('large', '0123456789abcdef' x (1 << 16));
    return $t->backends(1, http => <<"EOF");
    log_format checks '\$server_port \$status \$ssl_protocol \$ssl_server_name \$ssl_client_verify '
        '\$connection \$connection_requests \$host "\$http_host" \$request';
    ssl_protocols TLSv1.2 TLSv1.3;
    server {
        @{[ $listen->('http') ]}
        listen unix:$dir/http.sock;
        $pong
        location /503 { return 503; }
        location /404 { return 404; }
        location /204 { return 204; }
        location /302 { return 302 /elsewhere; }
        location /json { return 200 '{"status": "ok", "text": "a \\\\ b"}'; }
        location /empty { return 200 ''; }
        location = /large { root $dir; }
    }
    server {
        @{[ $listen->('tls13', 'ssl') ]}
        ssl_protocols TLSv1.3;
        @{[ $certificate->($good) ]}
        location /503 { return 503; }
        $pong
    }
    server {
        @{[ $listen->('tls12', 'ssl') ]}
        ssl_protocols TLSv1.2;
        @{[ $certificate->($good) ]}
        $pong
    }
    server {
        @{[ $listen->('tls_client', 'ssl') ]}
        ssl_client_certificate $authority->{certificate};
        ssl_verify_client on;
        @{[ $certificate->($good) ]}
        $pong
    }
    server {
        @{[ $listen->('tls_expired', 'ssl') ]}
        @{[ $certificate->($expired) ]}
        $pong
    }
    server {
        @{[ $listen->('tls_refusing', 'ssl') ]}
        ssl_reject_handshake on;
    }
$grpc
EOF
}

# Each is an upstream of one server: [name, server, verdict, what else stands in "check", the other
# directives]. A verdict is 'up' or the reason why it is not. What is to go up begins down, and what is to
# go down begins up, so that neither is so before it was checked.
sub rows {
    my ($type, @rows) = @_;
    push @types, $type unless $rows{$type};
    for my $row (@rows) {
        my %row = (type => $type);
        @row{qw(name server verdict parameters directives)} = @$row;
        $_ //= '' for @row{qw(parameters directives)};
        push @{ $rows{$type} }, \%row;
    }
    return;
}

sub conf {
    my $upstreams = '';
    for my $row (map { @{ $rows{$_} } } @types) {
        my $default_down = $row->{verdict} eq 'up' ? 'true' : 'false';
        # A machine that is busy makes none of them fail that is not to.
        my $timeout = $row->{parameters} =~ /timeout=/ ? '' : 'timeout=20000';
        $upstreams .= <<"EOF";
    upstream $row->{name} {
        server $row->{server};
        check interval=200 rise=1 fall=1 $timeout default_down=$default_down type=$row->{type} $row->{parameters};
        $row->{directives}
    }
EOF
    }
    return <<"EOF";
%%TEST_GLOBALS%%
worker_processes 2;
events { worker_connections 2048; }
http {
    %%TEST_GLOBALS_HTTP%%
    check_shm_size 10M;
$upstreams
    upstream unchecked_down {
        server $nginx{http};
        check interval=24d type=http;
    }
    upstream unchecked_up {
        server $nginx{http};
        check interval=24d type=http default_down=false;
    }
    upstream alone {
        server $nginx{http};
        check_http_send "GET /503 HTTP/1.0\\r\\n\\r\\n";
        check_http_expect_alive http_5xx;
    }
    upstream sequence {
        check interval=100 rise=2 fall=3 timeout=20s type=http default_down=true;
        server $steady;
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location = /check_status { check_status; }
        location ~ ^/to/(\\w+)\$ { proxy_pass http://\$1/; }
    }
}
EOF
}

# Whether there was a verdict, and some more checks that came to the same.
sub is_settled {
    my $row = shift;
    my $found = $checked->{ $row->{name} }{ $row->{server} } or return 0;
    my ($status, $count) = $row->{verdict} eq 'up' ? qw(up rise) : qw(down fall);
    return $found->{status} eq $status && $found->{$count} >= 5;
}

sub verdict {
    my $row = shift;
    my $name = $row->{name};
    my $verdict = $row->{verdict};
    my $found = $checked->{$name}{ $row->{server} };
    my @said = flips($t, $name);
    my @expected = [ $row->{server}, $verdict eq 'up' ? 'up' : ('down', $verdict) ];
    if (ref $verdict && @said && ($said[0][2] // '') =~ $verdict) {
        $expected[0][2] = $said[0][2];
    }
    is_deeply(\@said, \@expected, "$name is " . ($verdict eq 'up' ? 'up' : "down: $verdict") . ', said once')
        or diag explain \@said;
    ok(is_settled($row), "$name: check_status says so, time and again") or diag explain $found;
    is($found->{type}, $row->{type}, "$name: with its type") if $found;
    return;
}

sub tcp {
    rows('tcp',
        [ 'tcp_listens', $silent, 'up' ],
        [ 'tcp_greets', $stranger_greets, 'up' ],
        [ 'tcp_default', $nginx{http}, 'up' ],
        [ 'tcp_refused', $nobody, 'connect refused' ],
        [ 'tcp_full', $full, 'timeout in connect', 'timeout=200' ],
        [ 'tcp_unix', "unix:$dir/http.sock", 'up' ],
    );
    return;
}

sub get { return qq{check_http_send "GET $_[0] HTTP/1.0\\r\\n\\r\\n";} }

sub http_ {
    my $chunks = responder($t, \&answer_in_chunks)->address;
    my $bare = responder($t, sub {
        receive($_[0], qr/\r\n\r\n/);
        syswrite $_[0], "HTTP/1.0 200 OK\r\n\r\npo";
        sleep 0.02;
        syswrite $_[0], 'ng';
        return 0;
    })->address;
    my $http = $nginx{http};
    my $get11 = 'check_http_send "GET /pong HTTP/1.1\r\nHost: app.example\r\n\r\n";';
    rows('http',
        [ 'http_default', $http, 'up' ],
        [ 'http_unix', "unix:$dir/http.sock", 'up' ],
        [ 'http_head', $http, 'up', '', 'check_http_send "HEAD /http_head HTTP/1.0\r\n\r\n";' ],
        [ 'http_host', $http, 'up', '',
            'check_http_send "GET /http_host HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n";' ],
        [ 'http_refused', $nobody, 'connect refused' ],
        [ 'http_closed', $closing, qr/^connection (?:closed|reset) in read$/ ],
        [ 'http_reset', $resetting, 'connection reset in read' ],
        [ 'http_silent', $silent, 'timeout in read', 'timeout=200' ],
        [ 'http_full', $full, 'timeout in connect', 'timeout=200' ],
        [ 'http_none', $stranger_greets, 'no answer of HTTP' ],
        [ 'http_tls', $nginx{tls13}, 'status 400' ],
        [ 'http_large', $http, 'up', '', get('/large') ],
    );
    # Where nobody asks for more, nothing behind the status line counts.
    my $says = sub {
        my @pieces = @_;
        return responder($t, sub {
            receive($_[0], qr/\r\n\r\n/);
            syswrite $_[0], $_ for @pieces;
            return 1;
        })->address;
    };
    my $line = "HTTP/1.1 200 OK\r\n";
    my $cut = $says->($line);
    my $many = $says->($line . "Name: value\r\n" x 1001 . "Content-Length: 4\r\n\r\npong");
    my $thousand = $says->($line . "Name: value\r\n" x 999 . "Content-Length: 4\r\n\r\npong");
    my $strange = $says->($line . "Name: \0\r\n\r\n");
    my $pong = 'check_http_expect_body ~ "^pong$";';
    rows('http',
        [ 'http_cut', $cut, 'up' ],
        [ 'http_cut_keep', $cut, 'up', 'timeout=200', 'check_keepalive_requests 3;' ],
        [ 'http_cut_body', $cut, 'timeout in read', 'timeout=200', $pong ],
        [ 'http_many', $many, 'up' ],
        [ 'http_many_keep', $many, 'up', '', 'check_keepalive_requests 3;' ],
        [ 'http_many_body', $many, 'answer too long', '', $pong ],
        [ 'http_thousand_body', $thousand, 'up', '', $pong ],
        [ 'http_strange', $strange, 'up' ],
        [ 'http_strange_body', $strange, 'no answer of HTTP', '', $pong ],
        [ 'http_version', $says->("HTTP/2.0 200 OK\r\n\r\n"), 'up' ],
        [ 'http_version_not', $says->("HTTP/2.0 503 No\r\n\r\n"), 'status 503' ],
        [ 'http_empty_lines', $says->("\r\n", "\n$line"), 'up' ],
        [ 'http_early', $says->("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", $line), 'up' ],
    );
    # One server, another verdict in each upstream.
    rows('http',
        [ 'http_503', $http, 'status 503', '', get('/503') ],
        [ 'http_503_alive', $http, 'up', '', get('/503') . 'check_http_expect_alive http_5xx;' ],
        [ 'http_302', $http, 'up', '', get('/302') ],
        [ 'http_302_not', $http, 'status 302', '', get('/302') . 'check_http_expect_alive http_2xx;' ],
        [ 'http_302_both', $http, 'up', '', get('/302') . 'check_http_expect_alive http_2xx http_3xx;' ],
        [ 'http_404', $http, 'status 404', '', get('/404') ],
        [ 'http_404_code', $http, 'up', '', get('/404') . 'check_http_expect_alive 200-299 404;' ],
        [ 'http_404_class', $http, 'up', '', get('/404') . 'check_http_expect_alive http_4xx;' ],
        [ 'http_404_range', $http, 'status 404', '', get('/404') . 'check_http_expect_alive 200-403 405-599;' ],
        [ 'http_204', $http, 'up', '', get('/204') ],
        [ 'http_204_gap', $http, 'status 204', '', get('/204') . 'check_http_expect_alive 200-203 205;' ],
        [ 'http_200_not', $http, 'status 200', '', get('/') . 'check_http_expect_alive http_4xx http_5xx;' ],
    );
    rows('http',
        [ 'body', $http, 'up', '', get('/') . 'check_http_expect_body ~ "^pong by [0-9]+";' ],
        [ 'body_not', $http, 'body does not match', '', get('/') . 'check_http_expect_body ~ "^pong$";' ],
        [ 'body_without', $http, 'up', '', get('/') . 'check_http_expect_body !~ "error|fault";' ],
        [ 'body_without_not', $http, 'body does not match', '', get('/') . 'check_http_expect_body !~ "by";' ],
        [ 'body_json', $http, 'up', '', get('/json') . q{check_http_expect_body ~ '"status":\s*"ok".*a \\\\\\\\ b';} ],
        [ 'body_case', $http, 'body does not match', '', get('/') . 'check_http_expect_body ~ "PONG";' ],
        [ 'body_any_case', $http, 'up', '', get('/') . 'check_http_expect_body ~ "(?i)PONG";' ],
        # It has no body, or none that is asked for.
        [ 'body_of_head', $http, 'body does not match', '',
            'check_http_send "HEAD / HTTP/1.0\r\n\r\n"; check_http_expect_body ~ "pong";' ],
        [ 'body_header', $http, 'body does not match', '', get('/') . 'check_http_expect_body ~ "nginx|HTTP";' ],
        [ 'body_empty', $http, 'body does not match', '', get('/empty') . 'check_http_expect_body ~ "pong";' ],
        [ 'body_empty_right', $http, 'up', '', get('/empty') . 'check_http_expect_body ~ "^$";' ],
        [ 'body_of_503', $http, 'status 503', '', get('/503') . 'check_http_expect_body ~ "503";' ],
        [ 'body_until_end', $bare, 'up', '', 'check_http_expect_body ~ "^pong$";' ],
        [ 'body_chunks', $chunks, 'up', '', $get11 . 'check_http_expect_body ~ "^a pong in chunks$";' ],
        [ 'body_chunks_not', $chunks, 'body does not match', '', $get11 . 'check_http_expect_body !~ "pong";' ],
    );
    my ($live, $dead) = (port_of($http), port_of($nobody));
    rows('http',
        [ 'port_other', $nobody, 'up', "port=$live" ],
        [ 'port_dead', $http, 'connect refused', "port=$dead" ],
    );
    # What stands there again, and what is in force then.
    rows('http',
        [ 'again_port', $http, 'up', "port=$dead port=$live" ],
        [ 'again_check', $http, 'up', "port=$dead", 'check interval=200 rise=1 fall=1 timeout=20s;' ],
        [ 'again_send', $http, 'up', '', get('/503') . get('/') ],
        [ 'again_send_not', $http, 'status 503', '', get('/') . get('/503') ],
        [ 'again_send_default', $http, 'up', '', get('/503') . 'check_http_send "";' ],
        [ 'again_alive', $http, 'up', '', get('/404') . 'check_http_expect_alive 404; check_http_expect_alive http_5xx;' ],
        [ 'again_alive_not', $http, 'status 404', '', get('/404') . 'check_http_expect_alive 403; check_http_expect_alive http_5xx;' ],
        [ 'again_body', $http, 'up', '', get('/') . 'check_http_expect_body ~ "ping"; check_http_expect_body ~ "pong";' ],
    );
    my $keep = sub { qq{check_http_send "GET /$_[0] HTTP/1.1\\r\\nHost: app.example\\r\\n\\r\\n";} };
    rows('http',
        [ 'keep', $http, 'up', '', $keep->('keep') . 'check_keepalive_requests 3;' ],
        [ 'keep_body', $http, 'up', '',
            $keep->('keep_body') . 'check_keepalive_requests 100; check_http_expect_body ~ "pong";' ],
        [ 'keep_not', $http, 'up', '', $keep->('keep_not') ],
        [ 'keep_1_0', $http, 'up', '', get('/keep_1_0') . 'check_keepalive_requests 3;' ],
        # A connection that it closes without a word between two checks is no failed check.
        [ 'keep_closed', $chunks, 'up', '', $get11 . 'check_keepalive_requests 10;' ],
    );
    return;
}

# "pong" stands in two chunks, and again behind the body.
sub answer_in_chunks {
    my $client = shift;
    receive($client, qr/\r\n\r\n/);
    my $answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        . "4\r\na po\r\na;extension=1\r\nng in chun\r\n2\r\nks\r\n0\r\nX-Trailer: pong pong\r\n\r\n";
    for ($answer =~ /.{1,23}/gs) {
        syswrite $client, $_;
        sleep 0.002;
    }
    return 0;
}

sub https {
    my $verify = "check_ssl_verify on; check_ssl_trusted_certificate $authority->{certificate};";
    my $show = "check_ssl_certificate $client->{certificate}; check_ssl_certificate_key $client->{key};";
    rows('https',
        [ 'https_13', $nginx{tls13}, 'up', '', get('/https_13') ],
        [ 'https_12', $nginx{tls12}, 'up', '', get('/https_12') ],
        [ 'https_sni.example', $nginx{tls13}, 'up', '', get('/https_sni.example') ],
        [ 'https_name', $nginx{tls13}, 'up', '', get('/https_name') . 'check_ssl_name other.example;' ],
        [ 'https_verified', $nginx{tls13}, 'up', '', get('/https_verified') . "$verify check_ssl_name app.example;" ],
        [ 'https_verified_12', $nginx{tls12}, 'up', '', "$verify check_ssl_name app.example;" ],
        # Its own name is the one that is wanted.
        [ 'app.example', $nginx{tls13}, 'up', '', $verify ],
        [ 'https_other_name', $nginx{tls13}, 'certificate does not match the name', '',
            "$verify check_ssl_name other.example;" ],
        [ 'https_other_upstream', $nginx{tls13}, 'certificate does not match the name', '', $verify ],
        [ 'https_stranger', $nginx{tls13}, qr/^certificate not verified \(error (?:20|21)\)$/, '',
            "check_ssl_verify on; check_ssl_trusted_certificate $stranger->{certificate}; check_ssl_name app.example;" ],
        [ 'https_system', $nginx{tls13}, qr/^certificate not verified \(error (?:20|21)\)$/, '',
            'check_ssl_verify on; check_ssl_name app.example;' ],
        [ 'https_expired', $nginx{tls_expired}, 'certificate not verified (error 10)', '',
            "$verify check_ssl_name app.example;" ],
        [ 'https_not_verified', $nginx{tls_expired}, 'up', '', 'check_ssl_verify off; check_ssl_name other.example;' ],
        [ 'https_client', $nginx{tls_client}, 'up', '', get('/https_client') . $show ],
        [ 'https_no_client', $nginx{tls_client}, 'status 400', '', get('/https_no_client') ],
        [ 'https_no_client_verified', $nginx{tls_client}, 'status 400', '', "$verify check_ssl_name app.example;" ],
        [ 'https_refused', $nginx{tls_refusing}, 'TLS alert unrecognized_name' ],
        [ 'https_plain', $nginx{http}, 'no answer of TLS' ],
        [ 'https_nobody', $nobody, 'connect refused' ],
        [ 'https_silent', $silent, 'timeout in handshake', 'timeout=200' ],
        [ 'https_closed', $closing, qr/^connection (?:closed|reset) in handshake$/ ],
        [ 'https_503', $nginx{tls13}, 'status 503', '', get('/503') ],
        [ 'https_body', $nginx{tls13}, 'up', '', 'check_http_expect_body ~ "pong by";' ],
        [ 'https_body_not', $nginx{tls13}, 'body does not match', '', 'check_http_expect_body !~ "pong by";' ],
        [ 'https_keep', $nginx{tls13}, 'up', '', 'check_keepalive_requests 3;'
            . 'check_http_send "GET /https_keep HTTP/1.1\r\nHost: app.example\r\n\r\n";' ],
        [ 'https_port', $nobody, 'up', 'port=' . (port_of($nginx{tls13}))[0] ],
    );
    return;
}

sub ssl_hello {
    rows('ssl_hello',
        [ 'hello_13', $nginx{tls13}, 'up' ],
        [ 'hello_12', $nginx{tls12}, 'up' ],
        [ 'hello_client', $nginx{tls_client}, 'up' ],
        [ 'hello_expired', $nginx{tls_expired}, 'up' ],
        [ 'hello_refused', $nginx{tls_refusing}, 'TLS alert unrecognized_name' ],
        [ 'hello_plain', $nginx{http}, 'no answer of TLS' ],
        [ 'hello_other', $stranger_greets, 'no answer of TLS' ],
        [ 'hello_nobody', $nobody, 'connect refused' ],
        [ 'hello_closed', $closing, qr/^connection (?:closed|reset) in \w+$/ ],
        [ 'hello_silent', $silent, qr/^timeout in (?:read|handshake)$/, 'timeout=200' ],
    );
    return;
}

sub grpc {
    my $verify = "check_ssl_verify on; check_ssl_trusted_certificate $authority->{certificate};";
    rows('grpc',
        [ 'grpc_nginx', $nginx{grpc}, 'up' ],
        [ 'grpc_forbidden', $nginx{grpc}, 'status 403' ],
        [ 'grpc_http', $nginx{http}, 'no answer of gRPC' ],
        [ 'grpc_other', $stranger_greets, 'no answer of gRPC' ],
        [ 'grpc_nobody', $nobody, 'connect refused' ],
        [ 'grpc_silent', $silent, 'timeout in read', 'timeout=200' ],
        [ 'grpc_closed', $closing, qr/^connection (?:closed|reset) in read$/ ],
    );
    rows('grpcs',
        [ 'grpcs_nginx', $nginx{grpcs}, 'up' ],
        [ 'grpcs_verified', $nginx{grpcs}, 'up', '', "$verify check_ssl_name app.example;" ],
        [ 'grpcs_other_name', $nginx{grpcs}, 'certificate does not match the name', '', $verify ],
        [ 'grpcs_refused', $nginx{tls_refusing}, 'TLS alert unrecognized_name' ],
        [ 'grpcs_plain', $nginx{grpc}, 'no answer of TLS' ],
    );
    return unless has_grpcio();
    my %words = (serving => '1', not_serving => '2', unknown_service => '3', unknown => '0', no_method => 'none',
        no_service => 'error 5', unavailable => 'error 14');
    my %address = map { $_ => address() } keys %words;
    my %servers = map { $address{$_} => $t->write_file("grpc_$_", $words{$_}) } keys %words;
    grpc_health($t, servers => \%servers, log => "$dir/grpc.log");
    rows('grpc',
        [ 'grpc_serving', $address{serving}, 'up' ],
        [ 'grpc_not_serving', $address{not_serving}, 'gRPC health NOT_SERVING' ],
        [ 'grpc_unknown_service', $address{unknown_service}, 'gRPC health SERVICE_UNKNOWN' ],
        [ 'grpc_unknown', $address{unknown}, 'gRPC health UNKNOWN' ],
        [ 'grpc_no_method', $address{no_method}, 'gRPC status 12' ],
        [ 'grpc_no_service', $address{no_service}, 'gRPC status 5' ],
        [ 'grpc_unavailable', $address{unavailable}, 'gRPC status 14' ],
    );
    my $tls = address();
    grpc_health($t, servers => { $tls => $t->write_file('grpcs_serving', '1') }, log => "$dir/grpcs.log", tls => $good,
        client => $authority->{certificate});
    rows('grpcs',
        [ 'grpcs_client', $tls, 'up', '', "$verify check_ssl_name app.example;"
            . "check_ssl_certificate $client->{certificate}; check_ssl_certificate_key $client->{key};" ],
        [ 'grpcs_no_client', $tls, qr/^(?:TLS alert \w+|connection (?:closed|reset) in \w+)$/, '', 'check_ssl_name app.example;' ],
    );
    return;
}

sub mysql {
    my $taken = $t->free_port;
    mariadb($t, $taken, '--max-connections=10', '--connect-timeout=3600');
    rows('mysql',
        [ 'mysql', "127.0.0.1:$mariadb_port", 'up' ],
        [ 'mysql_taken', "127.0.0.1:$taken", 'MySQL error 1040' ],
        [ 'mysql_other', $stranger_greets, 'no greeting of MySQL' ],
        [ 'mysql_nobody', $nobody, 'connect refused' ],
        [ 'mysql_silent', $silent, 'timeout in read', 'timeout=200' ],
        [ 'mysql_http', $nginx{http}, 'timeout in read', 'timeout=200' ],
        [ 'mysql_closed', responder($t, sub { return 0 })->address, 'connection closed in read' ],
    );
    wait_until { IO::Socket::INET->new(PeerAddr => "127.0.0.1:$mariadb_port") } 30, 'MariaDB is there';
    # The last of these is refused already.
    wait_until { @taken = grep { $_ } map { IO::Socket::INET->new(PeerAddr => "127.0.0.1:$taken") } 1 .. 15 } 30;
    like(receive($taken[-1], 7), qr/^...\0\xff\x10\x04/s, 'a MariaDB has all connections that it wants');
    return;
}

sub fastcgi {
    my $php = "127.0.0.1:$php_port";
    $t->write_file('index.php', "<?php echo 'hello';");
    $t->write_file('503.php', "<?php http_response_code(503); echo 'busy';");
    $t->write_file('302.php', "<?php header('Location: /elsewhere');");
    $t->write_file('complains.php', "<?php for (\$i = 0; \$i < 100; \$i++) error_log(str_repeat('complaint ', 100)); echo 'hello';");
    $t->write_file('large.php', "<?php echo str_repeat('hello ', 200000);");
    my $script = sub { "check_fastcgi_param REQUEST_METHOD GET; check_fastcgi_param SCRIPT_FILENAME $dir/$_[0];" };
    rows('fastcgi',
        [ 'fastcgi_ping', $php, 'up', '', 'check_fastcgi_param REQUEST_METHOD GET;'
            . 'check_fastcgi_param "SCRIPT_NAME" "/ping"; check_fastcgi_param SCRIPT_FILENAME /ping;' ],
        [ 'fastcgi_index', $php, 'up', '', $script->('index.php') ],
        # index.php in php-fpm's folder.
        [ 'fastcgi_default', $php, 'up' ],
        [ 'fastcgi_missing', $php, 'status 404', '', $script->('missing.php') ],
        [ 'fastcgi_missing_alive', $php, 'up', '', $script->('missing.php') . 'check_http_expect_alive http_2xx 404;' ],
        [ 'fastcgi_503', $php, 'status 503', '', $script->('503.php') ],
        [ 'fastcgi_302', $php, 'up', '', $script->('302.php') ],
        [ 'fastcgi_302_not', $php, 'status 302', '', $script->('302.php') . 'check_http_expect_alive http_2xx;' ],
        [ 'fastcgi_complains', $php, 'up', '', $script->('complains.php') ],
        [ 'fastcgi_large', $php, 'up', '', $script->('large.php') ],
        [ 'fastcgi_http', $nginx{http}, 'no answer of FastCGI' ],
        [ 'fastcgi_other', $stranger_greets, 'no answer of FastCGI' ],
        [ 'fastcgi_nobody', $nobody, 'connect refused' ],
        [ 'fastcgi_silent', $silent, 'timeout in read', 'timeout=200' ],
        [ 'fastcgi_closed', $closing, qr/^connection (?:closed|reset) in read$/ ],
    );
    wait_until { IO::Socket::INET->new(PeerAddr => $php) } 20, 'php-fpm is there';
    return;
}

sub ajp {
    my $answers = sub {
        my ($file, @pieces) = @_;
        return responder($t, sub {
            my $client = shift;
            open my $log, '>>', "$dir/$file" or die "$file: $!\n";
            syswrite $log, unpack('H*', receive($client, 5)) . "\n";
            for (@pieces) {
                syswrite $client, $_;
                sleep 0.005;
            }
            return 0;
        })->address;
    };
    my $cpong = "AB\0\1\x09";
    rows('ajp',
        [ 'ajp', $answers->('ajp.log', $cpong), 'up' ],
        [ 'ajp_pieces', $answers->('ajp_pieces.log', split //, $cpong), 'up' ],
        [ 'ajp_wrong', $answers->('ajp_wrong.log', "AB\0\1\x05"), 'no answer of AJP' ],
        [ 'ajp_half', $answers->('ajp_half.log', "AB\0"), qr/^connection closed in read$/ ],
        [ 'ajp_http', $nginx{http}, 'no answer of AJP' ],
        [ 'ajp_nobody', $nobody, 'connect refused' ],
        [ 'ajp_silent', $silent, 'timeout in read', 'timeout=200' ],
    );
    return;
}

# The requests that nginx, as a server that is checked, wrote down; for a path or for all.
sub requests {
    my $path = shift;
    my @requests;
    # The last line may be half written, and what came over TLS to a port without may hold anything.
    for (grep { / HTTP\/\d/ } $t->read_file($backends->{name} . '/checks.log') =~ /^(.*)\n/mg) {
        my %request;
        @request{qw(port status protocol sni verified connection number authority host method uri version)} =
            split / /, $_, 12;
        push @requests, \%request if !defined $path || $request{uri} eq $path;
    }
    return @requests;
}

# What all requests for a path had in common.
sub common {
    my ($path, @fields) = @_;
    my %common = map { join(' ', @$_{@fields}) => 1 } requests($path);
    return join ' | ', sort keys %common;
}

sub asked {
    my @fields = qw(status host method uri version);
    is(common('/http_head', @fields), '200 "-" HEAD /http_head HTTP/1.0', 'check_http_send, as it is');
    is(common('/http_host', @fields), '200 "app.example" GET /http_host HTTP/1.1', 'HTTP/1.1 with a host');
    my @default = grep { ($_->{port} || 0) == (port_of($nginx{http}))[0] } requests('/');
    is(scalar(grep { "$_->{method} $_->{version} $_->{host}" !~ m{^(?:GET|HEAD) HTTP/1\.0 "-"$} } @default), 0,
        'GET / HTTP/1.0 where nothing is said');
    cmp_ok(scalar @default, '>', 5, 'again and again');

    my @tls = qw(protocol sni verified);
    is(common('/https_13', @tls), 'TLSv1.3 https_13 NONE', 'the name of an upstream is the one in TLS');
    is(common('/https_sni.example', @tls), 'TLSv1.3 https_sni.example NONE', 'whatever it is');
    is(common('/https_12', @tls), 'TLSv1.2 https_12 NONE', 'TLS 1.2');
    is(common('/https_name', @tls), 'TLSv1.3 other.example NONE', 'check_ssl_name');
    is(common('/https_verified', @tls), 'TLSv1.3 app.example NONE', 'the name that is verified');
    is(common('/https_client', @tls), 'TLSv1.3 https_client SUCCESS', 'check_ssl_certificate');
    is(common('/https_no_client', @tls), 'TLSv1.3 https_no_client NONE', 'none without');

    my $health = '/grpc.health.v1.Health/Check';
    if ($rows{grpc}) {
        my %by_name = map { $_->{authority} => join ' ', @$_{qw(status protocol method version)} } requests($health);
        is($by_name{grpc_nginx}, '200 - POST HTTP/2.0', 'gRPC for the upstream');
        is($by_name{grpcs_nginx}, '200 TLSv1.3 POST HTTP/2.0', 'over TLS');
        is($by_name{'app.example'}, '200 TLSv1.3 POST HTTP/2.0', 'for check_ssl_name');
    }
    for my $log ($rows{grpc} && has_grpcio() ? qw(grpc.log grpcs.log) : ()) {
        my %lines = map { $_ => 1 } split /\n/, $t->read_file($log);
        is_deeply(\%lines, { "b'' $health" => 1 }, "$log: asked for the server as a whole");
    }
    for my $log (qw(ajp.log ajp_pieces.log)) {
        my %lines = map { $_ => 1 } split /\n/, $t->read_file($log);
        is_deeply(\%lines, { '123400010a' => 1 }, "$log: CPing");
    }
    return;
}

# The most requests that came over one connection. A worker that is late is overtaken by another, so
# connections may carry fewer.
sub kept {
    my $most = sub {
        my %most = (0 => 0);
        $most{ $_->{number} } = 1 for requests($_[0]);
        return (sort { $b <=> $a } keys %most)[0];
    };
    wait_until { $most->('/keep') >= 3 && $most->('/https_keep') >= 3 && $most->('/keep_body') > 5 } 20;
    is($most->('/keep'), 3, 'a connection is used so often');
    is($most->('/https_keep'), 3, 'over TLS, too');
    is($most->('/keep_not'), 1, 'once if nothing is said');
    is($most->('/keep_1_0'), 1, 'once if the server closes it');
    cmp_ok($most->('/keep_body'), '>', 5, 'as often as is said, when a body was looked at');
    return;
}

sub port {
    is(checked($t, 'port_other')->{$nobody}{port}, (port_of($nginx{http}))[0], 'another port is shown');
    is(checked($t, 'http_default')->{ $nginx{http} }{port}, 0, '0 is its own');
    is(http_get($t->port(0), '/to/port_other')->{status}, 502, 'requests go to its own');
    is(http_get($t->port(0), '/to/port_dead')->{status}, 502, 'or nowhere');
    return;
}

sub default_down {
    my %first = map { my $name = "unchecked_$_"; ($name => checked($t, $name)->{ $nginx{http} }) } qw(down up);
    is_deeply({ map { $_ => join ' ', @{ $first{$_} }{qw(status rise fall)} } keys %first },
        { unchecked_down => 'down 0 0', unchecked_up => 'up 0 0' }, 'what a server is before it is checked');
    is(http_get($t->port(0), '/to/unchecked_down')->{status}, 502, 'down: 502');
    is(http_get($t->port(0), '/to/unchecked_up')->{status}, 200, 'up: served');
    is_deeply([ map { flips($t, "unchecked_$_") } qw(down up) ], [], 'nothing is said of it');
    return;
}

sub answer_by_number {
    my ($client, $number) = @_;
    my $status = (split ' ', $sequence)[ $number - 1 ] // 200;
    receive($client, qr/\r\n\r\n/);
    syswrite $client, "HTTP/1.0 $status As asked for\r\n\r\n";
    return 0;
}

# rise=2 fall=3
sub rise_and_fall {
    wait_until { (checked($t, 'sequence')->{$steady}{rise} // 0) > 5 } 20, 'all was asked';
    my @both = ([ $steady, 'down', 'status 503' ], [ $steady, 'up' ]);
    is_deeply([ flips($t, 'sequence') ], [ @both, @both ],
        'so many in a row, neither fewer nor with others between') or diag explain [ flips($t, 'sequence') ];
    return;
}

sub go_and_come {
    my $mark = $t->log_mark;
    my @expected;
    if ($mariadb) {
        my $address = "127.0.0.1:$mariadb_port";
        $mariadb->stop('KILL');
        wait_checked($t, 'mysql', { $address => 'down' }, 20, 'MariaDB is killed');
        mariadb($t, $mariadb_port);
        wait_checked($t, 'mysql', { $address => 'up' }, 30, 'and started again');
        my @said = flips($t, 'mysql', $mark);
        is(join(' ', map { $_->[1] } @said), 'down up', 'both said once') or diag explain \@said;
        # A check may have been under way.
        like($said[0][2], qr/^(?:connect refused|connection (?:closed|reset) in read)$/, 'and why');
    }
    my ($serving) = grep { $_->{name} eq 'grpc_serving' } @{ $rows{grpc} // [] };
    if ($serving) {
        my $address = $serving->{server};
        my @states = ([ 2, 'down', 'gRPC health NOT_SERVING' ], [ 1, 'up' ], [ 'error 14', 'down', 'gRPC status 14' ], [ 1, 'up' ]);
        for (@states) {
            my ($word, $status) = @$_;
            # It is read at any time.
            rename $t->write_file('grpc_new', $word), "$dir/grpc_serving";
            wait_checked($t, 'grpc_serving', { $address => $status }, 20, "the health of a gRPC server is $word");
        }
        is_deeply([ flips($t, 'grpc_serving', $mark) ], [ map { [ $address, @$_[ 1 .. $#$_ ] ] } @states ], 'each said once');
    }
    return;
}

# Each is refused, where it stands.
sub refused {
    my $parameters = 'interval=TIME, rise=N, fall=N, timeout=TIME, default_down=true|false, type=TYPE or port=N';
    my $time = '1 to 2147483647 milliseconds or a time such as 5s';
    my $count = '1 to 2147483647';
    my $switch = 'true or false';
    my $types = 'tcp, http, https, ssl_hello, mysql, ajp, fastcgi, grpc or grpcs';
    my $port = '1 to 65535, or no "port" for the server\'s own';
    my $codes = 'http_1xx to http_5xx, codes from 100 to 599 and ranges such as 200-299';
    my $body = '"~ REGEX" or "!~ REGEX"';
    my $text = 'text without control characters but tabs and ends of lines';
    my $percent = '0 to 100, with or without "%"';
    my $host = '1 to 255 letters, digits, ".", "-", "_" or ":"';
    my $value = sub { qq{invalid value in "$_[0]" of "check", expected $_[1]} };
    my $unexpected = sub { my ($what, $name, $expected) = @_; return qq{unexpected "$what" in "$name", expected $expected} };
    my $none = sub { qq{no parameter after "$_[0]", expected $_[1]} };
    my $long = 'x' x 4000;

    my @values = (
        (map { [ $_, $time ] } qw(interval=0 interval= interval=-1 interval=1.5 interval=fast interval=2147483648
            timeout=0 timeout=1x timeout=25d interval=99999999999999999999)),
        (map { [ $_, $count ] } qw(rise=0 fall=0 rise=x fall=-1 rise= fall=2147483648)),
        (map { [ $_, $switch ] } qw(default_down=yes default_down= default_down=1 unique=on)),
        (map { [ $_, $types ] } qw(type=udp type= type=HTTPS type=icmp)),
        (map { [ $_, $port ] } qw(port=0 port=65536 port=http port= port=-1)),
    );
    refuses("check $_->[0];", $value->(@$_)) for @values;
    refuses("check $_;", $unexpected->($_, 'check', $parameters)) for qw(interval fast=1 Interval=5 max_fails=3);

    my @companions = (
        [ 'check_http_expect_body ~ "pong"; check_http_expect_body ~ "";', $unexpected->('', 'check_http_expect_body', $body) ],
        (map { [ "check_http_expect_alive $_;", $unexpected->($_, 'check_http_expect_alive', $codes) ] }
            qw(2xx http_6xx http_0xx 99 600 0200 300-200 200- -200 200-600 http_2xxx)),
        [ 'check_http_expect_alive http_2xx nothing;', $unexpected->('nothing', 'check_http_expect_alive', $codes) ],
        [ 'check_http_expect_body "pong" "x";', $unexpected->('pong', 'check_http_expect_body', $body) ],
        [ 'check_http_expect_body ~* "pong";', $unexpected->('~*', 'check_http_expect_body', $body) ],
        [ 'check_http_expect_body ~ "";', $unexpected->('', 'check_http_expect_body', $body) ],
        [ 'check_http_expect_body ~ "(pong";', qr/^upsync: upstream "app": invalid regular expression in "check_http_expect_body": .*missing.*parenthesis/ ],
        (map { [ "check_keepalive_requests $_;", $unexpected->($_, 'check_keepalive_requests', $count) ] } qw(0 -1 many 2147483648)),
        [ 'check_fastcgi_param "" x;', $unexpected->('', 'check_fastcgi_param', 'a name and a value') ],
        [ "check_fastcgi_param NAME$long $long;",
            'the value of "check_fastcgi_param" has 8004 bytes, expected at most 4096' ],
        [ join("\n", map { "check_fastcgi_param NAME$_ x;" } 1 .. 65),
            'too many "check_fastcgi_param", expected at most 64' ],
        [ 'check_ssl_verify yes;', $unexpected->('yes', 'check_ssl_verify', 'on or off') ],
        (map { [ "check_ssl_name $_;", $unexpected->($_, 'check_ssl_name', $host) ] } 'app/example', '*.example'),
        [ 'check_ssl_name ' . 'x' x 256 . ';', qr/^unexpected "x+[^"]*" in "check_ssl_name", expected \Q$host\E$/ ],
        (map { [ "check_fail_open $_;", $unexpected->($_, 'check_fail_open', $percent) ] } qw(101 -1 half 5%%)),
        [ "check_http_send \"\x01\";", qr/^\Qunexpected "\E.*\Q" in "check_http_send", expected $text\E$/ ],
    );
    refuses("check type=http;\n$_->[0]", $_->[1]) for @companions;

    # nginx itself counts the words of a directive, if it was told how many there may be.
    my %numbers = (
        check_http_send => [ '', 'one text, which is not empty' ],
        check_http_expect_alive => [ '', $codes ],
        check_http_expect_body => [ ' ~', $body ],
        check_keepalive_requests => [ '', $count ],
        check_fastcgi_param => [ ' NAME', 'a name and a value' ],
        check_ssl_verify => [ '', 'on or off' ],
        check_ssl_name => [ '', $host ],
        check_fail_open => [ '', $percent ],
    );
    for my $name (sort keys %numbers) {
        my ($words, $expected) = @{ $numbers{$name} };
        refuses("check type=http;\n$name$words;",
            qr/^(?:invalid number of arguments in "$name" directive|\Q@{[ $none->($name, $expected) ]}\E)$/);
        next if $name eq 'check_http_expect_alive';
        refuses("check type=http;\n$name$words on x x;",
            qr/^(?:invalid number of arguments in "$name" directive|unexpected "\w+" in "$name", expected \Q$expected\E)$/);
    }

    # nginx says itself what is wrong with a file.
    my $missing = "$dir/missing.pem";
    my %files = (check_ssl_trusted_certificate => $authority->{certificate}, check_ssl_certificate => $client->{certificate},
        check_ssl_certificate_key => $client->{key});
    my $pair = 'upsync: upstream "app": "check_ssl_certificate" and "check_ssl_certificate_key" go together, expected both or none';
    for my $name (sort keys %files) {
        my $all = join ' ', "check type=https;\n", map { "$_ " . ($_ eq $name ? $missing : $files{$_}) . ';' } sort keys %files;
        refuses($all, qr/\Q$missing\E.*No such file/, "$name: no such file");
        refuses("check type=https;\n$name '';", qq{empty path in "$name", expected a file});
        refuses("check type=https;\n$name $files{$name}; $name $files{$name};", qq{"$name" directive is duplicate, expected it once});
        refuses("check type=https;\n$name $files{$name};", $pair) unless $name =~ /trusted/;
    }
    refuses("check type=https; check_ssl_certificate $client->{certificate}; check_ssl_certificate_key $good->{key};",
        qr/\Q$good->{key}\E.*(?:mismatch|match)/, "another certificate's key");

    my $concurrency = sub { qq{invalid number "$_[0]" in "check_concurrency", expected 1 to 65535} };
    refused_in_http("check_concurrency $_;", $concurrency->($_)) for qw(0 -1 many 65536 1k);
    refused_in_http('check_concurrency 1; check_concurrency 1;', '"check_concurrency" directive is duplicate, expected it once');

    my @accepted = (
        'check;', 'check type=http;', 'check interval=3000 rise=2 fall=5 timeout=1000 type=http;',
        'check interval=5s timeout=1m rise=1 fall=1;', 'check interval=1m30s;', 'check interval=24d;',
        'check default_down=TRUE type=tcp unique=true;', 'check port=65535 default_down=False;',
        'check_http_send "GET / HTTP/1.0\r\n\r\n"; check type=http; check_http_expect_alive http_2xx http_3xx;',
        'check_http_expect_alive HTTP_2XX 100-599 404; check type=tcp;',
        'check type=http; check_http_expect_body !~ "a{2,3}[;#]\.$"; check_fail_open 50%;',
        'check type=fastcgi; check_fastcgi_param "REQUEST_METHOD" "GET"; check_fastcgi_param EMPTY "";',
        'check_keepalive_requests 100; check type=http; check_fail_open 0;',
        'check type=http; check_http_send "";',
        'check type=fastcgi; check_fastcgi_param NAME x; check_fastcgi_param NAME x;',
        "check type=https; check_ssl_verify on; check_ssl_name app.example; check_ssl_trusted_certificate $authority->{certificate};"
            . "check_ssl_certificate_key $client->{key}; check_ssl_certificate $client->{certificate};",
    );
    my $number = 0;
    my ($status, $output) = $t->nginx_t(in_http(map { 'upstream app' . $number++ . " {\nserver 127.0.0.1:1;\n$_\n}\n" } @accepted));
    is($status, 0, 'what is right is taken') or diag $output;
    unlike($output, qr/\[(?:emerg|error|warn)\]/, 'without a word');

    my @notices = $t->log =~ /^.*\[notice\] .*check_shm_size.*$/mg;
    is(scalar @notices, 1, 'check_shm_size is taken, with one notice') or diag explain \@notices;
    return;
}

# What nginx_upstream_check_module takes without a word: nginx starts, and says what is odd.
sub warned {
    my $twice = sub { qq{duplicate "$_[0]", the last one is in force} };
    my @again = (
        [ 'check type=tcp rise=1 fall=1 rise=1 type=http;', $twice->('rise'), $twice->('type') ],
        [ 'check; check type=tcp fall=2 fall=3;', $twice->('check'), $twice->('fall') ],
        [ 'check; check_http_expect_alive http_2xx; check_http_expect_alive http_2xx;',
            'duplicate "check_http_expect_alive", the codes of both are good' ],
        (map { [ "check type=http; $_ $_", $twice->($_ =~ /^(\w+)/) ] } 'check_http_send "GET / HTTP/1.0\r\n\r\n";',
            'check_http_send "";', 'check_http_expect_body ~ "x";', 'check_keepalive_requests 2;',
            'check_ssl_verify on;', 'check_ssl_name app.example;', 'check_fail_open 50;'),
    );
    my @alone = ('check_http_send "GET / HTTP/1.0\r\n\r\n";', 'check_http_send "";', 'check_http_expect_alive http_2xx;',
        'check_keepalive_requests 2;', 'check_fastcgi_param NAME x; check_http_send x;', 'check_fail_open 50;', 'check_ssl_verify on;');

    my $conf = $t->expand("%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n");
    my $in = 'in ' . $t->testdir . '/test/nginx.conf:';
    my ($line, $number, @expected, @at_the_end) = (1 + $conf =~ tr/\n//, 0);
    my $block = sub {
        $line += 4;
        return 'upstream app' . $number++ . " {\nserver 127.0.0.1:1;\n$_[0]\n}\n";
    };
    for (@again) {
        my ($directives, @warnings) = @$_;
        push @expected, map { "$_ $in" . ($line + 2) } @warnings;
        $conf .= $block->($directives);
    }
    for my $directives (@alone) {
        my ($name) = $directives =~ /^(\w+)/;
        push @at_the_end, qq{upsync: upstream "app$number": "$name" has no effect without "check", expected "check" beside it $in$line};
        $conf .= $block->($directives);
    }
    my ($status, $output) = $t->nginx_t("$conf}\n");
    is($status, 0, 'accepted') or diag $output;
    is_deeply([ $output =~ /^nginx: \[warn\] (.*)$/mg ], [ @expected, @at_the_end ], 'with warnings, where it stands')
        or diag $output;
    unlike($output, qr/\[(?:emerg|alert|crit|error)\]/, 'and no more');

    is_deeply(checked($t, 'alone'), {}, 'without "check", nothing is checked');
    is(http_get($t->port(0), '/to/alone')->{status}, 200, 'and all are served');
    return;
}

sub in_http { return join "\n", "%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%", @_, '}' }

sub refuses {
    my ($directives, $expected, $name) = @_;
    return refused_in_http("upstream app {\nserver 127.0.0.1:1;\n$directives\n}", $expected,
        $name // substr($directives =~ s/^check type=http;\n|\n//gr, 0, 80));
}

# The first message is $expected, and says where it is.
sub refused_in_http {
    my ($http, $expected, $name) = @_;
    my ($status, $output) = $t->nginx_t(in_http($http));
    my ($message) = $output =~ /^nginx: \[emerg\] (.*)$/m;
    $message //= "accepted: $output";
    # OpenSSL's do not say where.
    $message =~ s/ in \S+nginx\.conf:\d+$// or ref $expected or $message .= ', without a place';
    $name //= $http;
    return ref $expected ? like($message, $expected, $name) : is($message, $expected, $name);
}
