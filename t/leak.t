#!/usr/bin/perl

# Servers come and go thousands of times: memory of the workers and of the zone stays flat.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $cycles = $ENV{TEST_CYCLES} // 1000;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my @servers = $t->backends(2)->addresses;

$t->write_file_expand('nginx.conf', <<'EOF');
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000000;
    keepalive_time 1d;
    upsync_zone 256k;
    upstream app {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=0;
        upsync_dump_path %%TESTDIR%%/app.conf;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location / { proxy_pass http://app; }
        location /list { upstream_show; }
        location /pid { return 200 $pid; }
    }
}
EOF
$consul->kv_put("upstreams/app/$servers[0]", '');
$t->run;
my @connections = connections_to_all();
is(@connections, 2, 'a connection to each worker');
wait_until { listed() == 1 } 10, 'one server';

# What is used at first depends on chance; so much is gone through before it is measured.
cycle($_) for 1 .. $cycles / 4;
my %before = measured();
cycle($_) for 1 .. $cycles;
my %after = measured();

my ($version) = reverse $t->log =~ /version (\d+)/g;
cmp_ok($version, '>=', 2 * $cycles, "changes applied: $version");
note "$_: $before{$_} -> $after{$_}" for sort keys %after;
is($after{'pages used'}, $before{'pages used'}, 'the same pages of the zone are used');
for (grep { /RSS/ } sort keys %after) {
    # The allocator takes its memory in steps; a leak of 100 bytes a change would be far more.
    cmp_ok($after{$_} - $before{$_}, '<', 256 + $cycles / 20, "$_: KiB more");
}
for (grep { /files|threads/ } sort keys %after) {
    is($after{$_}, $before{$_}, "$_: as many");
}

$t->done;

# Two servers, then one, each time seen by both workers. Every tenth time with another address,
# so that names and sockets differ in length.
sub cycle {
    my $number = shift;
    my $other = $number % 10 ? $servers[1] : 'unix:/tmp/' . 'x' x (1 + $number % 90);
    my $down = $number % 10 ? '' : '{"down":1}';
    $consul->kv_put("upstreams/app/$other", $down);
    until_listed(2);
    $consul->kv_delete("upstreams/app/$other");
    until_listed(1);
}

sub listed { return () = get($connections[0], '/list?app') =~ /^ +server/mg }

sub until_listed {
    my $count = shift;
    my $deadline = time + 10;
    until (listed() == $count) {
        die "not $count servers within 10 s\n" if time > $deadline;
        sleep 0.0005;
    }
    get($_, '/') for @connections;
}

sub get { my ($connection, $uri) = @_; return http_get(0, $uri, connection => $connection)->{body} }

sub connections_to_all {
    my %by_pid;
    for (1 .. 1000) {
        my $connection = http_connect($t->port(0));
        $by_pid{ get($connection, '/pid') } //= $connection;
        last if keys %by_pid == 2;
    }
    return map { $by_pid{$_} } sort keys %by_pid;
}

sub measured {
    my ($free, $all) = (reverse $t->log =~ /(\d+) of (\d+) pages free/g)[ 1, 0 ];
    my %measured = ('pages used' => $all - $free);
    for my $pid ($t->workers) {
        open my $status, '<', "/proc/$pid/status" or die "status: $!";
        my $text = do { local $/; <$status> };
        ($measured{"RSS of $pid"}) = $text =~ /VmRSS:\s+(\d+)/;
        ($measured{"threads of $pid"}) = $text =~ /Threads:\s+(\d+)/;
        $measured{"files of $pid"} = () = glob "/proc/$pid/fd/*";
    }
    return %measured;
}
