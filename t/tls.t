#!/usr/bin/perl

# TLS to the servers: sessions are used again, server by server, whatever happens to the list.

use strict;
use warnings;

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

$t->done;
