#!/usr/bin/perl

# Who may change upstreams: nginx's own access control on the interface, and clients that go away.

use strict;
use warnings;

use Fcntl qw(:flock);
use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $dir = $t->testdir;
my @servers = $t->backends(2)->addresses;
my $built = do { my $binary = Test::Upsync::nginx_binary(); qx($binary -V 2>&1) };
my %has = map { $_ => scalar $built =~ /--with-http_${_}_module/ } qw(ssl v2 auth_request);
$has{ssl} &&= `openssl version 2>/dev/null` ? 1 : 0;
$has{v2} &&= `curl -V 2>/dev/null` =~ /\bHTTP2\b/ ? 1 : 0;

# Authorities, and certificates for clients of each.
sub certificates {
    for my $authority (qw(ours theirs)) {
        my $ca = "$dir/$authority";
        my $new = 'openssl req -newkey rsa:2048 -nodes -subj';
        system("$new /CN=$authority -x509 -days 1 -keyout $ca.key -out $ca.crt 2>/dev/null"
            . " && $new /CN=client -keyout $ca-client.key -out $ca-client.csr 2>/dev/null"
            . " && openssl x509 -req -in $ca-client.csr -CA $ca.crt -CAkey $ca.key -CAcreateserial -days 1"
            . " -out $ca-client.crt 2>/dev/null") and die "openssl failed\n";
    }
    return;
}

certificates() if $has{ssl};
my $ssl = "ssl_certificate $dir/ours.crt; ssl_certificate_key $dir/ours.key; ssl_client_certificate $dir/ours.crt;";
my $tls = !$has{ssl} ? '' : <<"EOF";
    server {
        listen 127.0.0.1:%%PORT_1%% ssl;
        $ssl
        ssl_verify_client on;
        location / { dyups_interface; }
    }
    server {
        listen 127.0.0.1:%%PORT_2%% ssl;
        $ssl
        ssl_verify_client optional;
        location / {
            dyups_interface;
            if (\$ssl_client_verify != SUCCESS) { return 403; }
        }
    }
EOF
my $auth_request = $has{auth_request} ? '' : '#';
my $h2 = $has{v2} ? 'http2' : '';

$t->write_file('users', "admin:{PLAIN}secret\n");
$t->write_file('page.html', '[<!--#include virtual="/internal/list" -->][<!--#include virtual="/internal/upstream/app" -->]'
    . '[<!--#include virtual="/internal/upstream/nobody" -->][<!--#include virtual="/internal/list?format=json" -->]');

sub conf {
    my (%is) = @_;
    my ($more, $state) = ($is{more} // '', $is{state} // "dyups_state_path $dir/state;");
    return <<"EOF";
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
$more
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    client_body_buffer_size 16k;
    client_max_body_size 2m;
    upsync_zone 4m;
    $state
    upstream app { server $servers[0]; }
$tls
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport backlog=1024;
        listen 127.0.0.1:%%PORT_3%% $h2 backlog=1024;
        listen unix:$dir/api.sock;
        root $dir;
        add_header X-Pid \$pid always;
        location = /pid { return 200 \$pid; }
        location /open { dyups_interface; }
        location /read { dyups_interface read; }
        location /here { dyups_interface; allow 127.0.0.1; deny all; }
        location /socket { dyups_interface; allow unix:; deny all; }
        location /nobody { dyups_interface; deny all; }
        location /password { dyups_interface; auth_basic api; auth_basic_user_file $dir/users; }
        location /any {
            dyups_interface;
            satisfy any;
            allow 127.0.0.1;
            deny all;
            auth_basic api;
            auth_basic_user_file $dir/users;
        }
        location /all {
            dyups_interface;
            allow 127.0.0.1;
            deny all;
            auth_basic api;
            auth_basic_user_file $dir/users;
        }
        location /writes-here { dyups_interface; limit_except GET { allow 127.0.0.1; deny all; } }
        location /writes-password {
            dyups_interface;
            limit_except GET { auth_basic api; auth_basic_user_file $dir/users; }
        }
        location /writes-nobody { dyups_interface; limit_except GET { deny all; } }
        location /read-limited { dyups_interface read; limit_except GET { allow 127.0.0.1; deny all; } }

        location /internal { internal; dyups_interface; }
        location \@named { dyups_interface; }
        location = /by-error { error_page 418 = /internal/list; return 418; }
        location /upstream { error_page 418 = \@named; return 418; }
        location = /by-try { try_files /none /internal/list; }
        location /list { try_files /none \@named; }
        location /by-rewrite { rewrite ^/by-rewrite(/.*)\$ /internal\$1 last; }
        location /by-break { dyups_interface; rewrite ^/by-break/v1(/.*)\$ /by-break\$1 break; }
        location /page.html { ssi on; }
        location /mirrored {
            mirror /mirror;
            proxy_pass http://$servers[0]/;
        }
        location /mirror { internal; rewrite ^ /internal/upstream/mirrored; }
        location /headless {
            mirror /mirror;
            mirror_request_body off;
            proxy_pass http://$servers[0]/;
        }
        $auth_request location /asks { auth_request /internal/list; proxy_pass http://$servers[0]/; }
        $auth_request location /asks-nobody { auth_request /internal/upstream/nobody; proxy_pass http://$servers[0]/; }
        $auth_request location /guarded { auth_request /guard; dyups_interface; }
        location = /guard { internal; if (\$http_x_token = secret) { return 204; } return 401; }
        location /quick { dyups_interface; client_body_timeout 300ms; }
        location / { proxy_pass http://\$http_x_name; }
    }
}
EOF
}

$t->write_file_expand('nginx.conf', conf());
my ($checked, $output) = $t->nginx_t(conf());
is($checked, 0, 'nginx -t') or diag($output);
$t->run;
wait_until { $t->workers == 2 } 10, 'two workers';
my $numbers = 0;
my %password = (Authorization => 'Basic YWRtaW46c2VjcmV0');
my %wrong = (Authorization => 'Basic YWRtaW46d3Jvbmc=');
my $elsewhere = elsewhere() ? '127.0.0.2' : undef;

subtest 'allow and deny' => sub {
    open_to('/here');
    closed_to('/nobody', 403);
    reads('/nobody', 403);
    closed_to('/socket', 403);
    plan_elsewhere() or return;
    closed_to('/here', 403, from => $elsewhere);
    reads('/here', 403, from => $elsewhere);
    open_to('/open', from => $elsewhere);
    like($t->log, qr/\[notice\].*upsync: upstream "new\d+": .*, posted by 127\.0\.0\.2$/m, 'the log says who');
};

subtest 'a password' => sub {
    open_to('/password', headers => \%password);
    for my $headers ({}, \%wrong) {
        closed_to('/password', 401, headers => $headers);
        reads('/password', 401, headers => $headers);
    }
    # More than nginx has buffers for, so that it is refused before it is read.
    my $answer = ask('POST', '/password/upstream/app', body => '#' x 1_000_000);
    is($answer->{status}, 401, 'a large body');
    is($answer->{headers}{'www-authenticate'}, 'Basic realm="api"', 'and how to do it');
};

subtest 'a password or an address' => sub {
    open_to('/any');
    open_to('/all', headers => \%password);
    closed_to('/all', 401);
    plan_elsewhere() or return;
    closed_to('/any', 401, from => $elsewhere);
    open_to('/any', from => $elsewhere, headers => \%password);
    closed_to('/all', 403, from => $elsewhere, headers => \%password);
};

subtest 'limit_except' => sub {
    open_to('/writes-here');
    open_to('/writes-password', headers => \%password);
    closed_to('/writes-password', 401);
    closed_to('/writes-password', 401, headers => \%wrong);
    closed_to('/writes-nobody', 403);
    reads($_, 200) for '/writes-here', '/writes-password', '/writes-nobody', '/read-limited';
    closed_to('/read-limited', 405);
    plan_elsewhere() or return;
    closed_to('/writes-here', 403, from => $elsewhere);
    reads('/writes-here', 200, from => $elsewhere);
    closed_to('/read-limited', 403, from => $elsewhere);
};

subtest 'dyups_interface read' => sub {
    reads('/read', 200);
    closed_to('/read', 405);
    my $answer = ask('POST', '/read/upstream/app', body => "server $servers[1];");
    is($answer->{headers}{allow}, 'GET', 'Allow says what there is');
    is($answer->{body}, '', 'an empty text');
    $answer = ask('DELETE', '/read/upstream/app?format=json');
    is($answer->{headers}{allow}, 'GET', 'Allow');
    is_deeply(json($answer->{body}), { status => 405, msg => 'method not allowed' }, 'as JSON');
};

subtest 'a unix socket' => sub {
    my $socket = "unix:$dir/api.sock";
    open_to('/socket', to => $socket);
    open_to('/open', to => $socket);
    closed_to('/here', 403, to => $socket);
    closed_to('/password', 401, to => $socket);
    like($t->log, qr/\[notice\].*upsync: upstream "new\d+": .*, posted by unix:$/m, 'the log says so');
};

subtest 'certificates of clients' => sub {
    plan skip_all => 'no TLS' unless $has{ssl};
    for (['required', $t->port(1), 400], ['asked for', $t->port(2), 403]) {
        my ($name, $port, $refused) = @$_;
        my %certificates = ('ours' => "$dir/ours-client", 'theirs' => "$dir/theirs-client", 'none' => undef);
        my $before = detail();
        for my $whose (qw(theirs none)) {
            # Where one is asked for only, a wrong one is an error of nginx's own.
            my $status = $whose eq 'theirs' ? 400 : $refused;
            for my $request (['GET', '/list'], ['POST', '/upstream/app', "server $servers[1];"], ['DELETE', '/upstream/app']) {
                my $answer = tls($port, $certificates{$whose}, @$request);
                is($answer->{status}, $status, "$name, $whose: $request->[0]");
            }
        }
        is(detail(), $before, 'nothing changes');
        is(tls($port, $certificates{ours}, 'POST', '/upstream/tls', "server $servers[1];")->{body}, 'success', "$name: POST");
        is(tls($port, $certificates{ours}, 'GET', '/upstream/tls')->{body}, "server $servers[1]\n", 'GET');
        is(tls($port, $certificates{ours}, 'DELETE', '/upstream/tls')->{body}, 'success', 'DELETE');
    }
};

subtest 'a location of nginx itself' => sub {
    closed_to('/internal', 404);
    reads('/internal', 404);
    my $list = ask('GET', '/open/list')->{body};
    is(ask('GET', $_)->{body}, $list, $_) for '/by-error', '/by-try', '/list', '/by-rewrite/list', '/by-break/v1/list';
    open_to('/by-rewrite');
    open_to('/by-break/v1');
    # A location with a name has the whole path.
    open_to('');
    my $before = detail();
    is(ask('POST', '/by-error', body => "server $servers[1];")->{body}, $list, 'nginx makes a GET of an error');
    is(ask('POST', '/upstream/large', body => "server $servers[1];" . '#' x 100_000)->{body}, 'success', 'a large body');
    is(ask('DELETE', '/upstream/large')->{body}, 'success', 'goes');
    is(detail(), $before, 'all is as it was');
};

subtest 'subrequests' => sub {
    my $list = ask('GET', '/open/list')->{body};
    my $page = ask('GET', '/page.html');
    my $json = ask('GET', '/open/list?format=json')->{body};
    is($page->{status}, 200, 'a page with includes');
    is($page->{body}, "[$list][server $servers[0]\n][][$json]", 'has what is asked for');

    my $body = "server $servers[1];" . '#' x 100_000;
    for my $text ("server $servers[1];", $body) {
        my $answer = ask('POST', '/mirrored', body => $text);
        like($answer->{body}, qr/^hello world by \Q$servers[0]\E$/, 'a request is served');
        wait_until { ask('GET', '/open/upstream/mirrored')->{body} eq "server $servers[1]\n" } 5, 'its copy makes a list';
        is(ask('DELETE', '/mirrored')->{status}, 200, 'another one is served');
        wait_until { ask('GET', '/open/upstream/mirrored')->{status} == 404 } 5, 'its copy takes it away';
    }
    my $before = detail();
    like(ask('POST', $_, body => 'nonsense;')->{body}, qr/^hello/, 'a copy that is refused') for '/mirrored', '/headless';
    like(ask('GET', '/mirrored')->{body}, qr/^hello/, 'a copy of a GET');
    is(detail(), $before, 'changes nothing');

    SKIP: {
        skip 'no auth_request', 1 unless $has{auth_request};
        for my $method (qw(GET POST DELETE)) {
            my $text = $method eq 'POST' ? $body : undef;
            like(ask($method, '/asks', body => $text)->{body}, qr/^hello/, "$method: a list allows");
            # nginx itself makes this of an answer that is neither 2xx nor 401 or 403.
            is(ask($method, '/asks-nobody', body => $text)->{status}, 500, "$method: a 404 does not");
        }
        closed_to('/guarded', 401);
        open_to('/guarded', headers => { 'X-Token' => 'secret' });
        my $answer = ask('POST', '/guarded/upstream/large', body => $body, headers => { 'X-Token' => 'secret' });
        is($answer->{body}, 'success', 'a large body');
        is(ask('DELETE', '/open/upstream/large')->{body}, 'success', 'goes');
    }
};

subtest 'HTTP/2' => sub {
    plan skip_all => 'no HTTP/2' unless $has{v2};
    my $url = 'http://127.0.0.1:' . $t->port(3);
    my @curl = (qw(curl -s --max-time 10 --http2-prior-knowledge -w), '%{http_code} %{http_version}', '-o', '-');
    my $curl = sub {
        my $pid = open(my $pipe, '-|', @curl, @_) // die "curl: $!\n";
        return do { local $/; <$pipe> } // '';
    };
    $t->write_file('large', "server $servers[1];" . '#' x 300_000);
    my @bodies = (["server $servers[1];"], ["\@$dir/large"], ["\@$dir/large", '-H', 'Content-Length:']);
    for (@bodies) {
        is($curl->('--data-binary', @$_, "$url/open/upstream/h2"), 'success200 2', 'POST');
        is($curl->("$url/open/upstream/h2"), "server $servers[1]\n200 2", 'GET');
        is($curl->('-X', 'DELETE', "$url/open/upstream/h2"), 'success200 2', 'DELETE');
    }
    like($curl->('-d', 'nonsense', "$url/open/upstream/h2"), qr/^add server failed: .*400 2$/, 'a wrong body');
    like($curl->("$url/nobody/list"), qr/403 2$/, 'refused');
};

subtest 'many streams of one connection' => sub {
    plan skip_all => 'no HTTP/2' unless $built =~ /--with-http_v2_module/;
    my $connection = http_connect($t->port(3));
    my %streams = map { (2 * $_ + 1 => "h2-$_") } 1 .. 60;
    my $held = held();
    $connection->send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . frame(4, 0, 0, ''));
    $connection->send(stream_post($_, "/open/upstream/$streams{$_}", "server $servers[1];")) for sort { $a <=> $b } keys %streams;
    # More than a worker has threads for.
    waiting(32);
    my @reset = (3, 5, 7, 119, 121);
    $connection->send(join '', map { frame(3, 0, $_, pack 'N', 8) } @reset);
    is(ask('GET', '/open/list')->{status}, 200, 'others are served');
    close $held;
    my @reset_names = delete @streams{@reset};
    my $answers = stream_answers($connection, keys %streams);
    is_deeply($answers, { map { $_ => '200 success' } keys %streams }, 'all are answered');
    is(join(' ', map { listed_and_filed($_) } values %streams), join(' ', (1) x 110), 'in force and on disk');
    wait_until { waiting_count() == 0 } 10, 'those that the client took back end';
    for my $name (@reset_names) {
        my ($listed, $filed) = listed_and_filed($name);
        is($filed, $listed, "$name: in force and on disk, or neither");
    }
    ask('DELETE', "/open/upstream/$_") for @reset_names, values %streams;

    $held = held();
    $connection->send(stream_post($_, "/open/upstream/h2-$_", "server $servers[1];")) for 201, 203;
    waiting(2);
    $connection->close;
    close $held;
    wait_until { waiting_count() == 0 } 10, 'the changes of a connection that is gone end';
    for my $name ('h2-201', 'h2-203') {
        my ($listed, $filed) = listed_and_filed($name);
        is($filed, $listed, "$name: in force and on disk, or neither");
        ask('DELETE', "/open/upstream/$name");
    }
};

subtest 'a body in chunks' => sub {
    for my $length (0, 100_000) {
        my @chunks = ("server $servers[1]", ';', '#' x $length);
        my $text = join('', map { sprintf "%x\r\n%s\r\n", length, $_ } grep { length } @chunks) . "0\r\n\r\n";
        my $connection = connection();
        my $head = "POST /open/upstream/chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        is($connection->request('POST', "$head$text", 5)->{body}, 'success', 'POST');
        is(http_get(0, '/open/upstream/chunks', connection => $connection)->{body}, "server $servers[1]\n", 'made');
        is(ask('DELETE', '/open/upstream/chunks')->{body}, 'success', 'DELETE');
    }
};

subtest 'a client that goes away in the middle of the body' => sub {
    my $before = detail();
    my %files = open_files();
    for my $number (1 .. 100) {
        my $connection = connection();
        my $body = "server $servers[1];" . ($number % 2 ? '' : '#' x 50_000);
        my $head = $number % 3
            ? "Content-Length: 100000\r\n\r\n"
            : "Transfer-Encoding: chunked\r\n\r\n20000\r\n";
        $connection->send("POST /open/upstream/app HTTP/1.1\r\nHost: a\r\n$head$body");
        # A reset, in place of an orderly end.
        setsockopt $connection->{socket}, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $number % 5 == 0;
        $connection->close;
    }
    my $slow = connection();
    $slow->send("POST /quick/upstream/app HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nserver $servers[1];");
    my $answer = $slow->receive('POST', 10);
    is("$answer->{status} $answer->{error}", '0 closed', 'nginx itself ends one that waits too long');
    nothing_left_open(\%files);
    is(detail(), $before, 'nothing changes');
    is_deeply([glob "$dir/client_body_temp/*"], [], 'no body is left');
};

subtest 'a client that goes away while its change waits' => sub {
    my %files = open_files();
    my $held = held();
    my @names = map { "away$_" } 1 .. 30;
    my @connections = map { begin_post($_, "server $servers[1];") } @names;
    waiting(30);
    $_->close for @connections;
    is(ask('GET', '/open/list')->{status}, 200, 'others are served');
    close $held;
    wait_until { waiting_count() == 0 } 10, 'the changes end';
    my %states;
    for my $name (@names) {
        my ($listed, $filed) = listed_and_filed($name);
        $states{ $listed == $filed ? ($listed ? 'made' : 'not made') : "listed $listed, filed $filed" }++;
    }
    is(($states{made} // 0) + ($states{'not made'} // 0), 30, 'each is in force and on disk, or neither')
        or diag(explain(\%states));
    ask('DELETE', "/open/upstream/$_") for @names;
    nothing_left_open(\%files);
};

subtest 'a copy of a request whose client goes away' => sub {
    my $held = held();
    my $connection = connection();
    $connection->send("POST /mirrored HTTP/1.1\r\nHost: a\r\nContent-Length: "
        . length("server $servers[1];") . "\r\n\r\nserver $servers[1];");
    waiting(1);
    $connection->close;
    close $held;
    wait_until { waiting_count() == 0 } 10, 'it ends';
    my ($listed, $filed) = listed_and_filed('mirrored');
    is($filed, $listed, 'in force and on disk, or neither');
    ask('DELETE', '/open/upstream/mirrored');
};

subtest 'a connection that nginx closes while a change waits' => sub {
    $t->write_file_expand('nginx.conf', conf(more => 'worker_shutdown_timeout 200ms;'));
    ok($t->reload, 'reload');
    wait_until { !$t->old_workers } 10, 'the old workers go';
    my $held = held();
    my @names = map { "closed$_" } 1 .. 20;
    my @connections = map { begin_post($_, "server $servers[1];") } @names;
    push @connections, my $mirrored = connection();
    $mirrored->send("POST /mirrored HTTP/1.1\r\nHost: a\r\nContent-Length: "
        . length("server $servers[1];") . "\r\n\r\nserver $servers[1];");
    waiting(21);
    my @old = $t->workers;
    ok($t->reload, 'reload');
    my @answers = map { $_->receive('POST', 10) } @connections;
    is(scalar(grep { $_->{status} == 0 } @answers[ 0 .. 19 ]), 20, 'no change is answered');
    is(ask('GET', '/open/list')->{status}, 200, 'the new workers serve');
    close $held;
    wait_until { !$t->old_workers } 10, 'the old workers go';
    for my $name (@names, 'mirrored') {
        my ($listed, $filed) = listed_and_filed($name);
        is($filed, $listed, "$name: in force and on disk, or neither");
        ask('DELETE', "/open/upstream/$name");
    }
    $t->write_file_expand('nginx.conf', conf());
    ok($t->reload, 'back');
};

for my $is_kept (1, 0) {
    subtest 'many at once, ' . ($is_kept ? 'kept on disk' : 'in memory only') => sub {
        $t->write_file_expand('nginx.conf', conf($is_kept ? () : (state => '')));
        ok($t->reload, 'reload');
        many_at_once($is_kept);
    };
}

# What a client says as Host comes to lists of names that were made at run time, not to blocks of
# nginx.conf, whether a list was posted for them or not.
subtest q{a name of the client's choice} => sub {
    my ($public, $private, $fallback) = $t->backends(3)->addresses;
    my $other = $t->another_nginx(<<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream any { dyups \$http_host; server $fallback; }
    upstream internal { server $private; }
    server {
        listen 127.0.0.1:%%PORT_4%% reuseport;
        location / { proxy_pass http://any; }
        location /internal/ { proxy_pass http://internal; }
        location /api/ { dyups_interface; }
    }
}
EOF
    $other->run;
    my $port = $t->port(4);
    my $serves = sub { return http_get($port, $_[0], host => $_[1])->{body} =~ s{^hello world by |\s+$}{}gr };
    my $post = sub { is(http('POST', $port, "/api/upstream/$_[0]", body => "server $_[1];")->{body}, 'success', $_[0]) };
    $post->('public', $public);
    is($serves->('/', 'Public'), $public, 'a posted name');
    is($serves->('/', 'internal'), $fallback, 'a block');
    $post->('internal', $private);
    is($serves->('/internal/', 'public'), $private, 'a block that was posted');
    is($serves->('/', $_), $fallback, "is not that of the Host $_") for 'internal', 'INTERNAL', 'any';
    $post->('any', $private);
    is($serves->('/', 'internal'), $private, 'but the block has its own list instead of its servers');
    $other->stop;
};

$t->done;

sub many_at_once {
    my $is_kept = shift;
    my $start = time;
    my @connections = map { begin_post("many$_", "server $servers[ $_ % 2 ];") } 1 .. 200;
    my %answers;
    $answers{"$_->{status} $_->{body}"}++ for map { $_->receive('POST', 30) } @connections;
    is_deeply(\%answers, { '200 success' => 200 }, 'all are answered');
    note sprintf '200 names in %.2f s', time - $start;
    $_->close for @connections;
    my %lists = map { ("many$_" => ask('GET', "/open/upstream/many$_")->{body}) } 1 .. 200;
    is_deeply(\%lists, { map { ("many$_" => "server $servers[ $_ % 2 ]\n") } 1 .. 200 }, 'and made');

    # All of one list: none is lost.
    $start = time;
    my @other = map { "127.0.1.$_:80" } 1 .. 200;
    @connections = map { begin_post('many1/server', "server $_;") } @other;
    %answers = ();
    $answers{"$_->{status} $_->{body}"}++ for map { $_->receive('POST', 30) } @connections;
    is_deeply(\%answers, { '200 success' => 200 }, 'all are answered');
    note sprintf '200 servers of one name in %.2f s', time - $start;
    $_->close for @connections;
    my @now = ask('GET', '/open/upstream/many1')->{body} =~ /^server (\S+)$/mg;
    is_deeply([sort @now], [sort $servers[1], @other], 'and added');
    my @filed = slurp("$dir/state/many1.conf") =~ /^ +server (\S+)/mg;
    is_deeply(\@filed, $is_kept ? \@now : [], 'on disk too, if they are kept there');

    my @deletes = map { my $connection = connection(); $connection->send(
        "DELETE /open/upstream/many$_ HTTP/1.1\r\nHost: a\r\n\r\n"); $connection } 1 .. 200;
    %answers = ();
    $answers{"$_->{status} $_->{body}"}++ for map { $_->receive('DELETE', 30) } @deletes;
    is_deeply(\%answers, { '200 success' => 200 }, 'all are deleted');
    is_deeply([glob "$dir/state/many*"], [], 'on disk too');
    return;
}

# A request from an address, to this server or another.
sub ask {
    my ($method, $uri, %opt) = @_;
    my ($from, $to) = (delete $opt{from}, delete $opt{to});
    $opt{headers} = { Connection => 'close', %{ $opt{headers} // {} } };
    return http($method, $to // $t->port(0), $uri, %opt, $from ? (connection => connection($from)) : ());
}

sub connection {
    my $from = shift or return http_connect($t->port(0));
    my $socket = IO::Socket::INET->new(LocalAddr => $from, PeerAddr => '127.0.0.1', PeerPort => $t->port(0), Timeout => 5)
        or die "connect from $from: $!\n";
    return bless { buffer => '', socket => $socket }, 'Test::Upsync::HTTP::Connection';
}

# Not every system has more than one address of its own.
sub elsewhere { return scalar eval { connection('127.0.0.2') } }

sub plan_elsewhere { return $elsewhere || !diag('no address 127.0.0.2: not all is tested') }

# One of each kind of change: method, what follows the prefix, body.
sub changes {
    my $name = shift;
    return (['POST', "/upstream/$name", "server $servers[0];"], ['PUT', "/upstream/$name", "server $servers[0];"],
        ['POST', "/upstream/$name/server", "server $servers[1];"], ['PATCH', "/upstream/$name/server/$servers[1]", 'weight=5'],
        ['DELETE', "/upstream/$name/server/$servers[0]"], ['DELETE', "/upstream/$name"]);
}

sub open_to {
    my ($prefix, %opt) = @_;
    my $name = 'new' . ++$numbers;
    my @changes = changes($name);
    my $delete = pop @changes;
    my $failed = join '', map {
        my ($method, $path, $body) = @$_;
        my $answer = ask($method, "$prefix$path", %opt, body => $body);
        $answer->{body} eq 'success' ? () : "$method $path: $answer->{status} $answer->{body}\n";
    } @changes;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is($failed, '', "changes at $prefix");
    is(ask('GET', "/open/upstream/$name")->{body}, "server $servers[1]\n", 'are made');
    is(ask($delete->[0], "$prefix$delete->[1]", %opt)->{body}, 'success', 'also its end');
    return is(ask('GET', "/open/upstream/$name")->{status}, 404, 'is made');
}

sub closed_to {
    my ($prefix, $status, %opt) = @_;
    my $before = detail();
    my @statuses = map {
        my ($method, $path, $body) = @$_;
        ask($method, "$prefix$path", %opt, body => $body)->{status};
    } changes('app'), changes('other'), ['POST', '/upstream/app/reset'];
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is("@statuses", "@{[ ($status) x 13 ]}", "no change at $prefix");
    return is(detail(), $before, 'is made');
}

sub reads {
    my ($prefix, $status, %opt) = @_;
    my @statuses = map { ask('GET', "$prefix/$_", %opt)->{status} } qw(list detail upstream/app status);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is("@statuses", "@{[ ($status) x 4 ]}", "to read at $prefix");
}

sub detail { return ask('GET', '/open/detail')->{body} }

sub tls {
    my ($port, $certificate, $method, $uri, $body) = @_;
    my $request = "$method $uri HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    $request .= 'Content-Length: ' . length($body) . "\r\n" if defined $body;
    my $file = $t->write_file('request', "$request\r\n" . ($body // ''));
    my $with = $certificate ? "-cert $certificate.crt -key $certificate.key" : '';
    my $answer = `timeout 20 openssl s_client -quiet -connect 127.0.0.1:$port $with < $file 2>/dev/null`;
    my ($status) = $answer =~ m{^HTTP/1\.1 (\d+)};
    return { status => $status // 0, body => $answer =~ s/.*?\r\n\r\n//sr };
}

# A change that is sent; `many1/server` is a name, too.
sub begin_post {
    my ($name, $body) = @_;
    my $connection = connection();
    $connection->send("POST /open/upstream/$name HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($body) . "\r\n\r\n$body");
    return $connection;
}

# Nobody changes the folder until the result is closed.
sub held {
    open my $folder, '<', "$dir/state" or die "$dir/state: $!\n";
    flock $folder, LOCK_EX or die "$dir/state: $!\n";
    return $folder;
}

# The threads that changes have, of all workers.
sub waiting_count {
    my @names = map { slurp($_) } map { glob "/proc/$_/task/*/comm" } $t->workers, $t->old_workers;
    return scalar grep { $_ eq "upsync post\n" } @names;
}

sub waiting {
    my $count = shift;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return wait_until { waiting_count() == $count } 10, "so many wait: $count";
}

# A frame of HTTP/2.
sub frame {
    my ($type, $flags, $stream, $payload) = @_;
    return substr(pack('N', length $payload), 1) . pack('CCN', $type, $flags, $stream) . $payload;
}

# :method POST, :scheme http, :path, :authority; the body.
sub stream_post {
    my ($stream, $path, $body) = @_;
    my $head = "\x83\x86\x04" . chr(length $path) . $path . "\x01\x01a";
    return frame(1, 4, $stream, $head) . frame(0, 1, $stream, $body);
}

# What the streams are answered: the code, if it is 200, and the body.
sub stream_answers {
    my ($connection, @streams) = @_;
    my %left = map { $_ => 1 } @streams;
    my ($buffer, %answers) = ('');
    my $select = IO::Select->new($connection->{socket});
    while (%left) {
        $select->can_read(20) && sysread $connection->{socket}, $buffer, 65536, length $buffer or last;
        while (length $buffer >= 9 && length $buffer >= 9 + (my $length = unpack 'N', "\0" . substr $buffer, 0, 3)) {
            my ($type, $flags, $stream) = unpack 'CCN', substr $buffer, 3, 6;
            my $payload = substr substr($buffer, 0, 9 + $length, ''), 9;
            $answers{$stream} = $payload =~ /^(?:[\x20-\x3f])?\x88/ ? '200 ' : '? ' if $type == 1;
            $answers{$stream} .= $payload if $type == 0;
            delete $left{$stream} if $type <= 1 && $flags & 1;
        }
    }
    return \%answers;
}

sub listed_and_filed {
    my $name = shift;
    return (ask('GET', "/open/upstream/$name")->{status} == 200 ? 1 : 0, -e "$dir/state/$name.conf" ? 1 : 0);
}

sub open_files { return map { my @files = glob "/proc/$_/fd/*"; ($_ => scalar @files) } $t->workers }

# Not so many as have gone away, at least: some file or other may be open at either time.
sub nothing_left_open {
    my $before = shift;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return wait_until { my %now = open_files(); !grep { $now{$_} > ($before->{$_} // 0) + 3 } keys %now } 10, 'nothing is left open';
}

sub slurp {
    open my $file, '<:raw', $_[0] or return '';
    local $/;
    return <$file> // '';
}
