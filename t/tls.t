#!/usr/bin/perl

# TLS to the servers: sessions are used again, server by server, whatever happens to the list.

use strict;
use warnings;

use IO::Socket::IP;
use Test::More;

use lib 't/lib';
use Test::Upsync;

plan(skip_all => 'no openssl') unless `openssl version 2>/dev/null`;

my $t = Test::Upsync->new;
my ($key, $certificate) = map { $t->testdir . "/tls.$_" } qw(key crt);
system("openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout $key -out $certificate 2>/dev/null")
    and die "openssl req failed\n";
# Of its own they would have others after a reload.
$t->write_file('ticket.key', 'k' x 80);

my $consul = $t->consul;
my $backends = $t->backends(3, options => 'ssl',
    http => q{log_format tls '$backend $ssl_protocol $ssl_session_reused $connection $request_uri';},
    server => "access_log tls.log tls; ssl_certificate $certificate; ssl_certificate_key $key;"
        . ' ssl_protocols TLSv1.2 TLSv1.3; ssl_session_timeout 1h;'
        . ' ssl_session_ticket_key ' . $t->testdir . '/ticket.key;');
my ($one, $two, $three) = $backends->addresses;

my %protocols = (12 => 'TLSv1.2', 13 => 'TLSv1.3');
my @names = map { ("v$_", "kept$_", "off$_") } sort keys %protocols;
my $upstreams = join '', map { <<"CONF" } @names;
    upstream $_ {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=10ms;
        @{[/kept/ ? 'keepalive 4;' : '']}
    }
CONF
my $locations = join '', map {
    my ($number) = /(\d+)/;
    my $kept = /kept/ ? 'proxy_http_version 1.1; proxy_set_header Connection "";' : 'proxy_set_header Connection close;';
    my $off = /off/ ? 'proxy_ssl_session_reuse off;' : '';
    "location /$_ { proxy_pass https://$_; proxy_ssl_protocols $protocols{$number}; $kept $off }\n";
} @names;

# One worker: each has sessions of its own.
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 1;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
$upstreams
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location = /list { upstream_show; }
        $locations
    }
}
EOF
$t->run;

# Waits until all upstreams have these servers, with these weights.
sub servers {
    my %weights = @_;
    for ($one, $two, $three) {
        $weights{$_} ? $consul->kv_put("upstreams/app/$_", { weight => $weights{$_} }) : $consul->kv_delete("upstreams/app/$_");
    }
    my $expected = join ' ', sort map { "$_ weight=$weights{$_}" } keys %weights;
    return wait_until {
        my @lists = map { http_get($t->port(0), "/list?$_")->{body} } @names;
        !grep { join(' ', sort /server (\S+ weight=\d+)/g) ne $expected } @lists;
    } 5;
}

# So many requests; what each server had of them: r for a session used again, . for a new one.
sub sessions {
    my ($uri, $number) = @_;
    # Written after the answer.
    my $logged = tls_log($uri);
    my @failed = grep { $_ != 200 } map { http_get($t->port(0), $uri)->{status} } 1 .. $number;
    wait_until { tls_log($uri) >= $logged + $number - @failed } 5;
    my %sessions = @failed ? (failed => "@failed") : ();
    $sessions{ $_->[0] } .= $_->[2] for tls_log($uri);
    return \%sessions;
}

sub tls_log {
    my $uri = shift;
    open my $log, '<', "$backends->{dir}/tls.log" or die "tls.log: $!\n";
    my @lines = grep { $_->[4] eq $uri } map { [split] } <$log>;
    return @lines;
}

for my $number (sort keys %protocols) {
    my $name = $protocols{$number};
    subtest $name => sub {
        ok(servers($one => 1, $two => 1), 'two servers');
        is_deeply(sessions("/v$number/first", 10), { $one => '.rrrr', $two => '.rrrr' }, 'a session each, used again');
        is_deeply({ map { $_->[1] => 1 } tls_log("/v$number/first") }, { $name => 1 }, $name);

        ok(servers($one => 1, $two => 1, $three => 1), 'a third');
        is_deeply(sessions("/v$number/third", 9), { $one => 'rrr', $two => 'rrr', $three => '.rr' }, 'has its own');
        ok(servers($one => 2, $two => 1, $three => 1), 'another weight');
        is_deeply(sessions("/v$number/weight", 8), { $one => 'rrrr', $two => 'rr', $three => 'rr' }, 'is the same server');
        ok(servers($one => 1, $two => 1), 'the third leaves');
        is_deeply(sessions("/v$number/left", 4), { $one => 'rr', $two => 'rr' }, 'the others stay');
        ok(servers($one => 1, $two => 1, $three => 1), 'it comes back');
        is_deeply(sessions("/v$number/back", 6), { $one => 'rr', $two => 'rr', $three => '.r' }, 'as a new one');

        is_deeply(sessions("/off$number", 6), { $one => '..', $two => '..', $three => '..' }, 'proxy_ssl_session_reuse off');

        my $kept = "/kept$number";
        is_deeply({ map { $_ => 1 } keys %{ sessions($kept, 30) } }, { $one => 1, $two => 1, $three => 1 }, 'keepalive');
        is(keys %{ { map { $_->[3] => 1 } tls_log($kept) } }, 3, 'a connection each');
        # The servers close the kept connections; the next ones take up the sessions.
        $backends->reload;
        wait_until { !$backends->old_workers } 5, 'the servers close them';
        is_deeply(sessions("$kept/again", 6), { $one => 'rr', $two => 'rr', $three => 'rr' }, 'the sessions are used again');
    };
}

# All names made at run time keep their connections in the one keepalive of their template, where
# nginx finds them by the server's address. One that was opened for a name is not another's.
subtest 'names with the same server' => sub {
    my $socket = $t->testdir . '/tls.sock';
    my ($v6) = IO::Socket::IP->new(LocalHost => '::1', Listen => 1) ? 'listen [::1]:%%PORT_2%% ssl;' : '';
    my $other = $t->another_nginx(<<"EOF");
%%TEST_GLOBALS%%
worker_processes 1;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    dyups_upstream any;
    upstream any {
        dyups \$http_host;
        keepalive 16;
    }
    server {
        listen 127.0.0.1:%%PORT_3%%;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_ssl_server_name on;
        proxy_ssl_name \$http_host;
        location /api/ { dyups_interface; }
        location /named { proxy_pass https://\$http_host; }
        location /any { proxy_pass https://any; }
        location /plain { proxy_pass http://any; }
    }
    server {
        listen 127.0.0.1:%%PORT_2%% ssl;
        listen unix:$socket ssl;
        $v6
        ssl_certificate $certificate;
        ssl_certificate_key $key;
        return 200 "\$ssl_server_name \$connection";
    }
    server {
        listen 127.0.0.1:%%PORT_4%%;
        return 200 "\$http_host \$connection";
    }
}
EOF
    $other->run;
    my $ask = sub { http_get($t->port(3), $_[0], host => $_[1])->{body} };
    my $post = sub { http('POST', $t->port(3), "/api/upstream/$_[0]", body => "server $_[1];") };
    my %servers = (ipv4 => '127.0.0.1:' . $t->port(2), unix => "unix:$socket");
    $servers{ipv6} = '[::1]:' . $t->port(2) if $v6;
    for my $kind (sort keys %servers) {
        my @names = map { "$kind-$_.example" } 'a', 'b';
        is($post->($_, $servers{$kind})->{body}, 'success', "$_ posted") for @names;
        for my $uri ('/named', '/any') {
            my %connections;
            for (1 .. 5) {
                for my $name (@names) {
                    my ($asked, $connection) = split ' ', $ask->($uri, $name);
                    is($asked, $name, "$uri: a connection of $name");
                    $connections{$name}{$connection} = 1;
                }
            }
            is_deeply([map { scalar keys %{ $connections{$_} } } @names], [1, 1], 'which is used again');
        }
    }
    # Without TLS nothing tells one connection from another.
    my %connections;
    is($post->($_, '127.0.0.1:' . $t->port(4))->{body}, 'success', "$_ posted") for 'a', 'b';
    $connections{ (split ' ', $ask->('/plain', $_))[1] } = 1 for ('a', 'b') x 3;
    is(keys %connections, 1, 'one connection for all names without TLS');
    $other->stop;
};

$t->done;
