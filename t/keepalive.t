#!/usr/bin/perl

# keepalive, above and below upsync in the block, and with zone.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my @backends = map { $t->backends(1) } 0 .. 1;
my @live = map { $_->addresses } @backends;

my $upsync = 'upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=10ms;';
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    upstream above {
        keepalive 8;
        $upsync
    }
    upstream below {
        $upsync
        keepalive 8;
    }
    upstream zoned {
        zone zoned 256k;
        $upsync
        keepalive 8;
        keepalive_timeout 60s;
    }
    upstream small {
        $upsync
        keepalive 1;
    }
    upstream held {
        upsync %%CONSUL%%/v1/kv/upstreams/held/ upsync_type=consul upsync_interval=10ms;
        keepalive 4;
    }
    server {
        # A socket for each worker: the kernel then spreads connections over them.
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location = /list { upstream_show; }
        location /above { proxy_pass http://above; }
        location /below { proxy_pass http://below; }
        location /zoned { proxy_pass http://zoned; }
        location /held { proxy_pass http://held; }
        location /small { proxy_pass http://small; }
        location /closed {
            proxy_pass http://below;
            proxy_set_header Connection close;
        }
        location /variable {
            set \$upstream below;
            proxy_pass http://\$upstream;
        }
    }
}
EOF

sub show { return http_get($t->port(0), "/list?$_[0]")->{body} }

# Waits until all upstreams have these servers.
sub servers {
    my %servers = map { $_ => 1 } @_;
    for (@live) {
        $servers{$_} ? $consul->kv_put("upstreams/app/$_", '') : $consul->kv_delete("upstreams/app/$_");
    }
    my $expected = join ' ', sort @_;
    return wait_until {
        my @lists = map { show($_) } qw(above below zoned small);
        !grep { join(' ', sort /server (\S+) weight/g) ne $expected } @lists;
    } 5;
}

# Who answered so many requests to a URI, when the backends have logged them.
my %asked;

sub ask {
    my ($uri, $number) = @_;
    my %bodies = map { http_get($t->port(0), $uri)->{body} => 1 } 1 .. $number;
    $asked{$uri} += $number;
    wait_until { requests($backends[0], $uri) + requests($backends[1], $uri) >= $asked{$uri} } 5;
    return \%bodies;
}

# The connections that requests to a URI came over.
sub connections {
    my $uri = shift;
    my %connections;
    for my $backend (@backends) {
        $connections{"$_->{address} $_->{connection}"} = 1 for grep { $_->{uri} eq $uri } $backend->requests;
    }
    return scalar keys %connections;
}

sub requests { my ($backend, $uri) = @_; return scalar grep { $_->{uri} eq $uri } $backend->requests }

$t->run;
ok(servers(@live), 'two servers');

my $served = { map { ("hello world by $_\n" => 1) } @live };
for my $place (qw(above below zoned variable)) {
    is_deeply(ask("/$place", 60), $served, "$place: both serve");
    cmp_ok(connections("/$place"), '<=', 4, 'over one connection of each worker with each');
    is(requests($backends[0], "/$place"), 30, 'by turns');
}
is_deeply(ask('/closed', 20), $served, 'Connection: close');
is(connections('/closed'), 20, 'has a connection for each request');
is_deeply(ask('/small', 60), $served, 'keepalive 1');
cmp_ok(connections('/small'), '>=', 20, 'two servers cannot share one place');

subtest 'a server that has left' => sub {
    ask('/below/warm', 20);
    my $before = () = $backends[0]->requests;
    ok(servers($live[1]), 'leaves');
    is_deeply(ask("/$_", 20), { "hello world by $live[1]\n" => 1 }, "$_: the other serves") for qw(above below zoned);
    is(scalar(() = $backends[0]->requests), $before, 'it gets no request over the connections it has');
    ok(servers(@live), 'comes back');
    is_deeply(ask("/$_", 20), $served, "$_: both serve") for qw(above below zoned);
};

subtest 'a server that closes its connections' => sub {
    is_deeply(ask('/below/before', 20), $served, 'both serve');
    $backends[0]->stop;
    $backends[0]->run;
    is_deeply(ask('/below/after', 20), $served, 'and again after one was started anew');
    is(scalar(() = $t->log =~ m{\[error\].*/below/after}g), 0, 'without an error');
};

# A server in the test's own hands: one that closes a kept connection just when a request is on it.
subtest 'a kept connection that was closed is no failure of the server' => sub {
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 8, ReuseAddr => 1);
    my $address = '127.0.0.1:' . $listener->sockport;
    my $answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld";
    my $next = sub {
        my ($connection, $uri) = @_;
        $connection //= IO::Select->new($listener)->can_read(5) && $listener->accept or return;
        my $head = '';
        while ($head !~ /\r\n\r\n/ && IO::Select->new($connection)->can_read(5)) {
            sysread $connection, $head, 4096, length $head or return;
        }
        return $head =~ m{^GET \Q$uri\E } ? $connection : undef;
    };
    # One client's connection is served by one worker.
    my $client = http_connect($t->port(0));
    my $ask = sub { $client->send("GET $_[0] HTTP/1.1\r\nHost: a\r\n\r\n") };

    # Of a single server max_fails is ignored; beside another, though that is down, it is not.
    for my $number (1, 2) {
        $consul->kv_put("upstreams/held/$address", { max_fails => 1, fail_timeout => 60 });
        $consul->kv_put("upstreams/held/$live[0]", { down => 1 }) if $number == 2;
        wait_until { show('held') =~ /count: $number\n/ } 5, "$number in the list";
        my $mark = $t->log_mark;

        $ask->("/held/$number/first");
        my $kept = $next->(undef, "/held/$number/first");
        syswrite $kept, $answer;
        is($client->receive('GET')->{body}, 'held', 'a first request');

        $ask->("/held/$number/again");
        ok($next->($kept, "/held/$number/again"), 'the next comes over the same connection');
        close $kept;
        my $new = $next->(undef, "/held/$number/again");
        ok($new, 'and once more over a new one');
        syswrite $new, $answer;
        is($client->receive('GET')->{body}, 'held', 'which is answered');

        # The request and the reset reach the worker at once, the request first.
        my @workers = $t->workers;
        kill 'STOP', @workers;
        $ask->("/held/$number/reset");
        setsockopt $new, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0;
        close $new;
        kill 'CONT', @workers;
        $new = $next->(undef, "/held/$number/reset");
        ok($new, 'once more over a new one also if the connection was reset');
        syswrite $new, $answer;
        is($client->receive('GET')->{body}, 'held', 'which is answered');
        close $new;
        unlike($t->log($mark), qr/temporarily disabled|no live upstreams/, 'max_fails=1 is not reached');
    }
};

subtest 'under load while servers come and go' => sub {
    my $load = wrk('http://127.0.0.1:' . $t->port(0) . '/below/load', seconds => 2, connections => 8, background => 1);
    my $until = time + 1.8;
    my $changes = 0;
    while (time < $until) {
        $changes += servers($live[$changes % 2]) ? 1 : -1000;
        $changes += servers(@live) ? 1 : -1000;
    }
    my $result = $load->();
    cmp_ok($changes, '>', 2, 'several changes') or diag $changes;
    is($result->{non_2xx} + $result->{socket_errors}, 0, 'no failed request') or diag $result->{output};
    cmp_ok(connections('/below/load'), '<', $result->{requests} / 5, 'connections are kept');
};

$t->done;
