#!/usr/bin/perl

# Every balancing method under load, while its list grows and shrinks through the sizes where tables
# and words end, with a server in it that fails every request: none fails for the client.

use strict;
use warnings;

use List::Util qw(max);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Picks;

# The directive, and where it may stand: in the block, in a posted list.
my @methods = (
    [ round_robin => '', qw(block body) ],
    [ least_conn => 'least_conn;', qw(block body) ],
    [ ip_hash => 'ip_hash;', qw(block body) ],
    [ hash => 'hash $arg_k;', qw(block body) ],
    [ consistent => 'hash $arg_k consistent;', qw(block body) ],
    [ random => 'random;', qw(block body) ],
    [ random_two => 'random two;', qw(block body) ],
    [ random_two_time => 'random two least_time=header;', qw(block body) ],
    [ least_time_header => 'least_time header;', qw(block body) ],
    [ least_time_last_byte => 'least_time last_byte;', qw(block body) ],
    [ local => 'upsync_lb local 127.1.0.0/16;', qw(block) ],
);
my $only = $ENV{TEST_METHODS};
@methods = grep { $_->[0] =~ /^(?:$only)$/ } @methods if $only;
my $seconds = $ENV{TEST_SECONDS} // 11;
my @up = (1, 2, 63, 64, 65, 128, 129, 1000);
my @sizes = (@up, reverse @up[ 0 .. $#up - 1 ]);

my $t = Test::Upsync->new;
my $port = $t->port(2);
my $failing = "127.1.255.254:$port";

my $backend = $t->another_nginx($t->globals(module => 0) . <<'EOF')->run;

worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000000;
    keepalive_time 1d;
    server {
        listen 0.0.0.0:%%PORT_2%% backlog=4096;
        add_header X-Server $server_addr:$server_port;
        location / { return 200 "hello\n"; }
    }
    # Fails in one of two ways.
    server {
        listen 127.1.255.254:%%PORT_2%%;
        location / {
            if ($arg_k ~ [02468]$) { return 444; }
            return 500;
        }
    }
}
EOF

my ($upstreams, $locations) = ('', '');
for my $method (@methods) {
    my ($name, $text, @places) = @$method;
    for my $place (@places) {
        my $directive = $place eq 'block' ? $text : '';
        $upstreams .= "upstream ${name}_$place { $directive server 127.0.0.1:1 down; keepalive 64; }\n";
        $locations .= "location /${name}_$place { proxy_pass http://${name}_$place; }\n";
    }
}
my $format = Test::Upsync::Picks->format;
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000000;
    keepalive_time 1d;
    log_format picks '$format';
    $upstreams
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport backlog=4096;
        access_log picks.log picks;
        # ip_hash is to have more than one client.
        set_real_ip_from 127.0.0.1;
        real_ip_header X-Client;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_next_upstream error timeout http_500;
        $locations
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
EOF
$t->run;

my $picks = Test::Upsync::Picks->new($t->testdir . '/picks.log');
for my $method (@methods) {
    my ($name, $text, @places) = @$method;
    subtest $text || 'round robin' => sub { churn($text, map { "${name}_$_" } @places) };
}

$t->stop;
is(join("\n", $picks->wrong), '', 'and nothing was wrong with the last requests');
note $picks->requests . ' requests, ' . $picks->retried . ' tried more than once';

$t->done;

sub churn {
    my ($text, @names) = @_;
    my ($requests, $retried) = ($picks->requests, $picks->retried);
    change($text, \@names, address(0)) or return ok(0, 'a first list');
    my $load = load(@names);
    my $until = time + $seconds / @methods;
    my ($step, $good) = (0, 1);
    while ($good && ($step < @sizes || time < $until)) {
        my $size = $sizes[ $step++ % @sizes ];
        $good = step($text, \@names, $size, $step);
        ok($good, "$size servers") if !$good || $step <= @sizes;
    }
    my $result = $picks->stop($load);
    cmp_ok($result->{requests}, '>', 1000, "requests: $result->{requests}, lists: $step");
    is($result->{non_2xx} + $result->{socket_errors}, 0, 'none failed') or diag $result->{output};
    wait_until { $picks->read; $picks->requests - $requests >= $result->{requests} } 10, 'all are looked at';
    is(join("\n", $picks->wrong), '', 'none went to a server that had left or was not the one it was meant for');
    cmp_ok($picks->retried - $retried, '>', 10, 'and the failing one was asked');
    return;
}

# Another part of the servers each time: some stay, some leave, some come. The failing one is
# anywhere in the list.
sub step {
    my ($text, $names, $size, $step) = @_;
    my $first = $step * 37;
    my @live = map { address($first + $_) } 1 .. max(1, $size - 1);
    my @list = @live;
    splice @list, $step * 11 % (@list + 1), 0, $failing if $size > 1;
    change($text, $names, @list) or return 0;

    my @local = $text =~ /local/ ? grep { /^127\.1\./ } @live : ();
    my @serving = @local ? @local : @live;
    my $good = 1;
    for my $name (@$names) {
        my @missing;
        my $all = wait_until {
            my ($served, $tried) = ($picks->served($name), $picks->tried($name));
            @missing = $size > 129 ? () : (
                (grep { !$served->{$_} } @serving),
                $size == 1 || $tried->{$failing} ? () : $failing,
            );
            !@missing && $picks->begun >= 300;
        } 20;
        my %serving = map { $_ => 1 } @serving;
        my @others = grep { !$serving{$_} } keys %{ $picks->served($name) };
        diag "$name, $size servers, " . $picks->begun . " requests, but none to: @missing" unless $all;
        diag "$name, $size servers, but requests to: @others" if @others;
        $good = 0 if !$all || @others;
    }
    return $good && ($text !~ /hash/ || keeps_to_one($text, @$names));
}

# Requests of one client with one key have one server, whichever worker and place of the directive.
sub keeps_to_one {
    my ($text, @names) = @_;
    for my $number (1 .. 3) {
        my $client = sprintf '10.%d.%d.1', rand 256, rand 256;
        my $uri = '?k=' . int rand 1_000_000;
        my %servers;
        for my $name ((@names) x 4) {
            my $answer = http_get($t->port(0), "/$name$uri", headers => { 'X-Client' => $client });
            $servers{ $answer->{headers}{'x-server'} // $answer->{status} }++;
        }
        next if keys %servers == 1;
        diag "$uri of $client with $text went to ", explain \%servers;
        return 0;
    }
    return 1;
}

# By turns in two networks.
sub address {
    my $number = shift;
    return sprintf '127.%d.%d.%d:%d', 1 + $number % 2, $number >> 8 & 127, $number & 255, $port;
}

# What least_time has learnt of a server is soon forgotten, so that none is left out for long.
sub change {
    my ($text, $names, @servers) = @_;
    my $body = join '', map { "server $_ max_fails=0 fail_timeout=1s;\n" } @servers;
    return $picks->change(\@servers, sub {
        my @refused = map {
            my $answer = http('POST', $t->port(1), "/upstream/$_", timeout => 20,
                body => /_body$/ ? "$text\n$body" : $body);
            $answer->{status} == 200 ? () : "$_: $answer->{status} $answer->{body}";
        } @$names;
        diag "not posted: @refused" if @refused;
        return !@refused;
    });
}

# Clients and keys of all kinds.
sub load {
    my $names = join ', ', map { "\"$_\"" } @_;
    my $script = $t->write_file('load.lua', <<"EOF");
local names = { $names }
local number = 0
-- No more than the test can look at.
delay = function() return 1 end
init = function() math.randomseed(os.time()) end
request = function()
    number = number + 1
    local client = string.format("10.%d.%d.1", math.random(0, 255), math.random(0, 255))
    local uri = "/" .. names[number % #names + 1] .. "?k=" .. math.random(1, 1000000)
    return wrk.format("GET", uri, { ["X-Client"] = client })
end
EOF
    my $wrk = wrk('http://127.0.0.1:' . $t->port(0), connections => 8, seconds => 3600, script => $script,
        background => 1, pid => \my $pid);
    return sub {
        kill 'INT', $pid;
        return $wrk->();
    };
}
