#!/usr/bin/perl

# From a KV PUT to every worker serving the new list.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $changes = $ENV{TEST_CHANGES} // 50;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my @servers = $t->backends(2)->addresses;

for my $workers (2, 4) {
    $consul->kv_delete('upstreams/app', recurse => 1);
    # Connections are made until each worker has been met, and kept: they ask it for its servers.
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes $workers;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000;
    upstream app {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=20ms;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location / { proxy_pass http://app; }
        location /pid { return 200 \$pid; }
    }
}
EOF
    $consul->kv_put("upstreams/app/$servers[0]", '');
    $t->run;
    my @connections = connections_to_all($t, $workers);
    is(@connections, $workers, "a connection to each of $workers workers");
    wait_until { !grep { body($_, '/') !~ /hello/ } @connections } 10, 'the first list';

    my @times;
    for my $round (1 .. $changes) {
        my ($new, $old) = $round % 2 ? @servers[ 1, 0 ] : @servers[ 0, 1 ];
        $consul->kv_put("upstreams/app/$new", '');
        until_all($new, 1, @connections) or last;
        sleep 0.05;    # a quiet period longer than upsync_interval
        my $start = time;
        $consul->kv_put("upstreams/app/$old", '{"down":1}');
        until_all($new, 3, @connections) or last;
        push @times, 1000 * (time - $start);
        $consul->kv_delete("upstreams/app/$old");
        sleep 0.03;
    }
    @times = sort { $a <=> $b } @times;
    my ($median, $p99) = ($times[ @times / 2 ], $times[ @times * 0.99 ]);
    note sprintf '%d workers, %d changes: median %.1f ms, p99 %.1f ms', $workers, scalar @times,
        $median, $p99;
    is(@times, $changes, 'every change was seen by every worker');
    # What noise cannot break: far below the seconds of polling.
    cmp_ok($median, '<', 500, sprintf 'median %.1f ms', $median);
    $t->stop;
}

$t->done;

sub body { my ($connection, $uri) = @_; return http_get(0, $uri, connection => $connection)->{body} }

sub connections_to_all {
    my ($t, $workers) = @_;
    my (%by_pid, $tries);
    while (keys %by_pid < $workers && $tries++ < 1000) {
        my $connection = http_connect($t->port(0));
        $by_pid{ body($connection, '/pid') } //= $connection;
    }
    return values %by_pid;
}

# Until each worker has sent so many requests in a row to the server.
sub until_all {
    my ($server, $times, @connections) = @_;
    my $deadline = time + 10;
    for my $connection (@connections) {
        my $row = 0;
        while ($row < $times && time < $deadline) {
            $row = body($connection, '/') =~ /\Q$server\E/ ? $row + 1 : 0;
        }
    }
    return time < $deadline;
}
