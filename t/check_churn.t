#!/usr/bin/perl

# Lists that change 50 times a second, by POST and by Consul: the servers that stay keep their verdicts,
# of which one is "down", and the times of their checks; those that have left are asked no more.
#
# TEST_SECONDS is the length of the run (5).

use strict;
use warnings;

use List::Util qw(min sum0);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Probes qw(percentile);

my $seconds = $ENV{TEST_SECONDS} // 5;
my $interval = 0.5;
# After a server has left: an interval, and time for a busy machine to tell the workers.
my $grace = $interval + 1;
# Of each list: so many stay, the last of which is down; so many of the others are there at a time. A
# server is there for half a second or more, and then away for several.
my ($staying, $passing, $others) = (20, 30, 400);

my $t = Test::Upsync->new;
my $consul = $t->consul;
my %first = (posted => 1, kv => 1001);
my $probes = Test::Upsync::Probes->new($t, down => [ map { $_ + $staying - 1 } values %first ]);

my (%stay, %pass);
for my $name (keys %first) {
    $stay{$name} = [ map { $probes->address($first{$name} + $_) } 0 .. $staying - 1 ];
    $pass{$name} = [ map { $probes->address($first{$name} + 500 + $_) } 0 .. $others - 1 ];
}
my %down = map { $_ => $stay{$_}[-1] } keys %stay;

# A verdict that is lost is that of default_down: "down" for those that are up, and the other way round.
my $check = 'check interval=500 rise=2 fall=2 timeout=3000 type=http default_down=%s;'
    . ' check_http_send "GET / HTTP/1.0\r\n\r\n";';
my %check = (posted => sprintf($check, 'true'), kv => sprintf($check, 'false'));

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000;
    client_body_buffer_size 64k;
    upsync_zone 8m;
    upstream kv {
        upsync %%CONSUL%%/v1/kv/upstreams/kv/ upsync_type=consul upsync_interval=10ms;
        $check{kv}
    }
    upstream posted { server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location / { proxy_pass http://\$arg_upstream; }
        location /status { check_status; }
        location /list { upstream_show; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { dyups_interface; }
    }
}
EOF

# Server => when it left; the times when one was away: [server, from, to].
my (%left, @away);
my %step = (posted => 0, kv => 0);

sub comes {
    my $server = shift;
    push @away, [ $server, delete $left{$server}, time ] if $left{$server};
    return;
}

sub leaves { my $server = shift; $left{$server} = time; return }

my $connection;

# The list moves by one: one server leaves, one comes.
sub post {
    my $name = 'posted';
    my $from = $step{$name};
    my @list = (@{ $stay{$name} }, map { $pass{$name}[ ($from + $_) % $others ] } 0 .. $passing - 1);
    comes($list[-1]) if $from;
    # Where the servers that stay are in the list differs too.
    push @list, splice @list, 0, $from % @list;
    $connection //= http_connect($t->port(1));
    my $answer = http('POST', 0, "/upstream/$name", connection => $connection, timeout => 20,
        body => join "\n", $check{$name}, map { "server $_;" } @list);
    die "not posted: $answer->{status} $answer->{body}\n" unless $answer->{status} == 200;
    leaves($pass{$name}[ ($from - 1) % $others ]) if $from;
    $step{$name}++;
    return;
}

# The same in two changes.
sub put {
    my $name = 'kv';
    my $step = $step{$name}++;
    my $server = $pass{$name}[ int($step / 2 + ($step % 2 ? 0 : $passing)) % $others ];
    if ($step % 2) {
        $consul->kv_delete("upstreams/$name/$server");
        leaves($server);
    } else {
        comes($server);
        $consul->kv_put("upstreams/$name/$server", '');
    }
    return;
}

sub servers {
    my $name = shift;
    my $answer = http_get($t->port(0), "/status?format=json&upstream=$name", timeout => 20);
    return map { $_->{name} => $_ } @{ json($answer->{body})->{servers}{server} };
}

# What is not as it was: servers that stay, with their verdict.
sub wrong_verdicts {
    my $name = shift;
    my %is = servers($name);
    return map {
        my ($verdict, $expected) = ($is{$_} ? $is{$_}{status} : 'not there', $_ eq $down{$name} ? 'down' : 'up');
        $verdict eq $expected ? () : "$_ is $verdict"
    } @{ $stay{$name} };
}

$consul->kv_put_many({ map { ("upstreams/kv/$_" => '') } @{ $stay{kv} }, @{ $pass{kv} }[ 0 .. $passing - 1 ] });
$t->run;
post();
for my $name (qw(posted kv)) {
    my @wrong;
    wait_until { !(@wrong = wrong_verdicts($name)) } 20, "$name: one is down, the others are up" or diag "@wrong";
}
my $told = sub { my $name = shift; return scalar(() = $t->log =~ /: server \Q$down{$name}\E is down: status 503/g) };
wait_until { $told->('kv') && $told->('posted') } 10;

my $mark = $t->log_mark;
my %before = map { servers($_) } qw(posted kv);
my $from = time;
my ($changes, $looks, @wrong) = (0, 0);
for (my $next = $from; time < $from + $seconds; $next += 0.02) {
    post();
    put();
    $changes++;
    # Now and then.
    if ($changes % 13 == 0) {
        push @wrong, wrong_verdicts($_) for qw(posted kv);
        $looks++;
    }
    my $rest = $next + 0.02 - time;
    $rest > 0 ? sleep $rest : ($next = time - 0.02);
}
my $to = time;
# What came last is there at once; what left last is not asked when its grace is over.
sleep $grace + $interval;
my $end = time;
push @away, map { [ $_, $left{$_}, $end ] } keys %left;
my %after = map { servers($_) } qw(posted kv);

note sprintf '%d changes of each list in %.1f s, %.1f a second', $changes, $to - $from, $changes / ($to - $from);
cmp_ok($changes, '>=', 10 * $seconds, 'the lists changed all the time');
is(join(', ', @wrong[ 0 .. min(9, $#wrong) ]), '', "each verdict was the same whenever it was looked at: $looks times");
my $staying_servers = join '|', map { quotemeta } map { @$_ } values %stay;
is(join("\n", grep { /: server (?:$staying_servers) is (?:up|down)/ } split /\n/, $t->log($mark)), '', 'and at all times');
is($told->($_), 1, "$_: the one that is down was told once") for qw(kv posted);

# Counts begin anew with a verdict; and no check fails that is good.
my @lost = grep {
    my $what = $_ eq $down{posted} || $_ eq $down{kv} ? 'fall' : 'rise';
    $after{$_}{$what} < $before{$_}{$what} + ($to - $from) / $interval / 2;
} map { @$_ } values %stay;
is(join(', ', @lost), '', 'their counts go on');

for my $name (sort keys %stay) {
    my %schedule = map { $_ => $probes->schedule($_, $interval, $from, $to) } @{ $stay{$name} };
    my @late = map { @{ $_->{late} } } values %schedule;
    my @gaps = map { @{ $_->{gaps} } } values %schedule;
    note sprintf '%s: checks of those that stay: %d, from one to the next %.3f s (median), %.3f to %.3f s; late by %.3f s (median), '
        . '%.3f s (99 %%), missed: %d', $name, scalar @late, map({ percentile($_, @gaps) } 0.5, 0, 1),
        map({ percentile($_, @late) } 0.5, 0.99), sum0(map { $_->{missed} } values %schedule);
    # A busy machine makes a check late, and lets one be missed now and then. A schedule that a change
    # begins anew would put off the checks, or multiply them, or move them to any time of the interval.
    my $expected = ($to - $from) / $interval;
    is(join(', ', grep { @{ $schedule{$_}{late} } > 1.1 * $expected + 1 } sort keys %schedule), '', 'none is asked too often');
    is(join(', ', grep { @{ $schedule{$_}{late} } < $expected / 2 } sort keys %schedule), '', 'none too seldom');
    is(join(', ', grep { @{ $schedule{$_}{twice} } } sort keys %schedule), '', 'none twice in an interval');
    cmp_ok(@late / (keys(%schedule) * $expected), '>', 0.8, 'all in all once an interval');
    cmp_ok(percentile(0.5, @late), '<', 0.15 * $interval, 'and each keeps to its time');
}

for my $name (sort keys %pass) {
    my %is_of = map { $_ => 1 } @{ $pass{$name} };
    my @absences = grep { $is_of{ $_->[0] } && $_->[2] - $_->[1] > $grace } @away;
    my @asked = map {
        my ($server, $left, $back) = @$_;
        map { sprintf '%s, %.3f s after it left', $server, $_ - $left } $probes->times($server, $left + $grace, $back)
    } @absences;
    cmp_ok(scalar @absences, '>', 2 * $seconds, "$name: servers that left for longer: " . @absences);
    is(join("\n", @asked[ 0 .. min(9, $#asked) ]), '', 'none of them was asked when an interval was over');
    my $asked = grep { $probes->times($_) } @{ $pass{$name} };
    cmp_ok($asked, '>', $passing / 2, "those that come are asked: $asked");
}

$t->done;
