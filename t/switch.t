#!/usr/bin/perl

# One Host is switched between a socket, an address and a prepared upstream, under load: no request
# fails, and the next one after each switch goes to the new servers.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $switches = $ENV{TEST_TIMES} // 100;

my $t = Test::Upsync->new;
my $socket = 'unix:' . $t->testdir . '/app-1.sock';
my $default_socket = 'unix:' . $t->testdir . '/default.sock';
my $backends = $t->backends(2, listen => [ $socket, $default_socket ]);
my ($address, $default_address) = $backends->addresses;

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000000;
    keepalive_time 1d;
    add_header X-Pid \$pid always;
    dyups_upstream any;
    upstream default_upstream {
        server $default_socket;
        server $default_address;
        keepalive 24;
    }
    upstream fixed {
        server $default_socket;
        server $default_address;
        keepalive 24;
    }
    upstream any {
        dyups \$host;
        server $default_address;
        keepalive 24;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        # Nothing is tried twice: a request that fails is seen.
        proxy_next_upstream off;
        proxy_set_header Host \$host;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location /static { proxy_pass http://fixed; }
        location /variable { proxy_pass http://\$host; }
        location /dyups { proxy_pass http://any; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
EOF
$t->run;

my $host = 'app.example';
my @ways = qw(static variable dyups);
my @targets = (
    { name => 'a socket', body => "server $socket;", servers => [$socket] },
    { name => 'an address', body => "server $address;", servers => [$address] },
    {
        name => 'a prepared upstream',
        body => 'server upstream:default_upstream;',
        servers => [ $default_socket, $default_address ],
    },
);

is_deeply([ switch_to($targets[2]) ], [ 200, 200 ], 'a first list');

# So many connections that both workers have some.
my %load;
for my $way (@ways) {
    $load{$way}{result} = wrk('http://127.0.0.1:' . $t->port(0) . "/$way/load", connections => 16,
        seconds => 600, headers => { Host => $host }, background => 1, pid => \$load{$way}{pid});
}
wait_until { my $loads = loads(); !grep { !$loads->{$_} } @ways } 10, 'load on all ways';

my (@refused, @wrong, @times, %seen);
my $checked = 0;
for my $number (1 .. $switches) {
    my $target = $targets[ $number % @targets ];
    my $start = time;
    my @statuses = switch_to($target);
    push @times, 1000 * (time - $start) / @statuses;
    push @refused, grep { $_ != 200 } @statuses;
    for my $way (@ways) {
        for my $answer (from_each_worker("/$way/next")) {
            $checked++;
            my ($server) = $answer->{body} =~ /^hello world by (\S+)$/;
            $seen{$way}{$server}++ if $server;
            next if $server && grep { $_ eq $server } @{ $target->{servers} };
            push @wrong, "$number, /$way, $target->{name}: " . ($server // "$answer->{status} " . ($answer->{error} // ''));
        }
    }
}
kill 'INT', map { $load{$_}{pid} } @ways;

is(scalar @refused, 0, "$switches switches of a static and a run-time upstream") or diag "@refused";
cmp_ok($checked, '>=', 2 * @ways * $switches, "requests after a switch, on each worker and way: $checked");
is(join("\n", @wrong), '', 'each went where the last switch says');
is_deeply([ sort keys %{ $seen{$_} } ], [ sort map { @{ $_->{servers} } } @targets ], "/$_: all four served") for @ways;
for my $way (@ways) {
    my $result = $load{$way}{result}->();
    cmp_ok($result->{requests}, '>', 5 * $switches, "/$way: requests meanwhile: $result->{requests}");
    is($result->{non_2xx} + $result->{socket_errors}, 0, 'none failed') or diag $result->{output};
}
is(() = $t->log =~ /\[error\]/g, 0, 'and no error was logged') or diag $t->log =~ /(.*\[error\].*)/;
my $loads = loads();
is(scalar(keys %{ $loads->{$_} }), 4, "/$_: the load went to all four servers") for @ways;
@times = sort { $a <=> $b } @times;
note sprintf 'a switch under load: median %.1f ms, most %.1f ms', $times[ @times / 2 ], $times[-1];

$t->done;

# The same servers for the static and for the run-time name.
sub switch_to {
    my $target = shift;
    return map { http('POST', $t->port(1), "/upstream/$_", body => $target->{body})->{status} } 'fixed', $host;
}

# Answers over new connections, until both workers have answered.
sub from_each_worker {
    my $uri = shift;
    my (@answers, %pids);
    for (1 .. 100) {
        my $answer = http_get($t->port(0), $uri, host => $host);
        push @answers, $answer;
        $pids{ $answer->{headers}{'x-pid'} // 'none' } = 1;
        return @answers if keys %pids == 2;
    }
    die "not both workers answered\n";
}

# The servers that requests of the load went to, by way.
sub loads {
    my %loads;
    open my $log, '<', "$backends->{dir}/access.log" or return {};
    while (<$log>) {
        $loads{$2}{$1}++ if m{^\S+ (\S+) 200 GET /(\w+)/load };
    }
    return \%loads;
}
