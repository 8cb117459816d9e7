#!/usr/bin/perl

# 2,000 servers that are checked every second: each is asked once an interval, by one worker, with
# reloads and a killed worker meanwhile.
#
# TEST_SECONDS is the length of the run (10), in which nginx is reloaded twice and one worker killed.

use strict;
use warnings;

use List::Util qw(max min sum0);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::App;
use Test::Upsync::Probes qw(cpu judge percentile);

my $seconds = $ENV{TEST_SECONDS} // 10;
my $number = 2000;
my $interval = 1;

# What is held against the log below finds what it is to find, and nothing else.
subtest 'the judge' => sub {
    my @times = map { 1000.25 + $_ } 0 .. 9;
    my $twice = sub { return scalar @{ judge(1, sort { $a <=> $b } @_)->{twice} } };
    is($twice->(@times), 0, 'a good schedule');
    my @late = @times;
    $late[$_] += $_ % 2 ? 0.6 : 0.95 for 3 .. 6;
    is($twice->(@late), 0, 'late ones are no second ones');
    $late[6] += 0.6;
    is($twice->(@late), 0, 'not even by more than an interval');
    is($twice->(@times, $times[5] + $_), 1, "a second one after $_ s") for 0.01, 0.3, 0.7;
    is($twice->(@times, map { $_ + 0.4 } @times), 10, 'two that ask');
    is(judge(1, @times[ 0 .. 4, 6 .. 9 ])->{missed}, 1, 'a missed one');
};

my $t = Test::Upsync->new;
my $probes = Test::Upsync::Probes->new($t);
my @servers = map { $probes->address($_) } 1 .. $number;
# A check of it takes half an interval.
my $slow = Test::Upsync::App->new($t, delay => $interval / 2)->run;
my $milliseconds = $interval * 1000;
my $check = "check interval=$milliseconds rise=1 fall=3 timeout=3000 type=http default_down=false;\n"
    . 'check_http_send "HEAD / HTTP/1.0\r\n\r\n";' . "\n";
my ($block, $body) = map { join '', $check, map { "server $_;\n" } @$_ }
    [ @servers[ 0 .. $number / 2 - 1 ] ], [ @servers[ $number / 2 .. $number - 1 ] ];

# A check that is cut off by its worker's death is made up for when its time would have been over.
my $slow_check = $check =~ s/fall=3 timeout=3000/fall=100 timeout=900/r;

# Few connections: each worker has 500 checks a second.
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 4;
events { worker_connections 512; }
http {
    %%TEST_GLOBALS_HTTP%%
    upsync_zone 16m;
    client_body_buffer_size 1m;
    upstream block {
$block
    }
    upstream slow { $slow_check server ${\$slow->address}; }
    upstream posted { server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location / { proxy_pass http://\$arg_upstream; }
        location /status { check_status json; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { dyups_interface; }
    }
}
EOF
$t->run;
my $posted = http('POST', $t->port(1), '/upstream/posted', body => $body, timeout => 20);
is($posted->{status}, 200, 'the other half is posted') or diag $posted->{body};

my @never = @servers;
wait_until { !(@never = grep { !$probes->times($_) } @never) } 30, 'each is asked'
    or diag @never . ' were not: ' . some(@never);

my ($from, $cpu) = (time, cpu($t->nginx));
my $to = $from + $seconds;
my @times;
for my $disturb (\&reload, \&kill_one, \&reload) {
    at($from + $seconds * (@times + 1) / 4);
    push @times, sprintf '%.1f', time - $from;
    $disturb->();
}
at($to);
my $used = cpu($t->nginx) - $cpu;

my $status = json(http_get($t->port(0), '/status', timeout => 20)->{body})->{servers};
is($status->{total}, $number + 1, 'check_status has all of them');
is(scalar(grep { $_->{status} eq 'up' } @{ $status->{server} }), $number + 1, 'and all are up');

my %schedule = map { $_ => $probes->schedule($_, $interval, $from, $to) } @servers;
my %count = map { $_ => scalar @{ $schedule{$_}{late} } } @servers;
my @late = map { @{ $_->{late} } } values %schedule;
my $all = @late;
note sprintf '%d checks in %d s, disturbed at %s s', $all, $seconds, join ', ', @times;
for ([ 'from one to the next', map { @{ $_->{gaps} } } values %schedule ], [ 'late', @late ]) {
    my ($what, @numbers) = @$_;
    note sprintf "$what: median %.3f s, 99 %% %.3f s, 1 %% %.3f s, most %.3f s, least %.3f s",
        map { percentile($_, @numbers) } 0.5, 0.99, 0.01, 1, 0;
}
note sprintf 'CPU of nginx: %.2f s in %d s, %.1f %% of one core, %.0f us a check, with the starts of workers', $used,
    $seconds, 100 * $used / $seconds, 1e6 * $used / max(1, $all);

# A busy machine makes checks late. Then some of them come after the end, or before the begin: one
# more or less. It makes none be done twice; a standstill of seconds costs some of those that were due
# in it, of some servers. Two that ask, a schedule that begins anew with each worker, a server that
# nobody asks any more: each of them breaks one of these.
my $expected = $seconds / $interval;
is(some(grep { $count{$_} > 1.1 * $expected + 1 } @servers), '', 'none was asked more often than once an interval');
my @seldom = grep { $count{$_} < 0.9 * $expected - 1 } @servers;
cmp_ok(scalar @seldom, '<=', $number / 100, 'at most one of a hundred was asked less often') or diag some(@seldom);
is(some(grep { $count{$_} < $expected / 2 } @servers), '', 'and none half as often');
cmp_ok(abs($all / ($number * $expected) - 1), '<', 0.1, "all in all once an interval: $all");
my $slowly = grep { $_ < $to } $slow->requests('HEAD', $from);
ok($slowly >= 0.9 * $expected - 1 && $slowly <= 1.1 * $expected + 1, "nor a slow one: from begin to begin, $slowly");
is(some(grep { !$probes->times($_, $to - 3 * $interval) } @servers), '', 'none was lost');
my @twice = grep { @{ $schedule{$_}{twice} } } @servers;
is(scalar @twice, 0, 'none was asked twice in an interval') or diag join "\n", map {
    my $server = $_;
    "$server: " . join ' ', map { sprintf '%.3f', $_ - $from } $probes->times($server, $from, $to);
} @twice[ 0 .. min(9, $#twice) ];
cmp_ok(percentile(0.5, @late), '<', 0.1 * $interval, 'each keeps to its time');

# One that hangs is not replaced: the others ask its servers too.
my ($hangs) = $t->workers;
kill 'STOP', $hangs;
my $stopped = time + $interval;
wait_until { !grep { $probes->times($_, $stopped) < 2 } @servers } 20, 'of a worker that hangs others take over its servers';
kill 'CONT', $hangs;

unlike($t->log, qr/worker_connections/, 'no complaint of worker_connections');
unlike($t->log, qr/: server \S+ is (?:down|up)\b/, 'no server was ever down');

$t->done;

sub at { my $time = shift; sleep $time - time if $time > time; return }

# Old workers have no requests, and checks hold up no exit.
sub reload {
    ok($t->reload, 'reloaded');
    wait_until { !$t->old_workers } 5, 'old workers are gone';
    return;
}

sub kill_one { return is(scalar($t->kill_worker), 1, 'a worker is killed and another takes its place') }

sub some {
    my @names = @_;
    return join(', ', @names[ 0 .. min(9, $#names) ]) . (@names > 10 ? ' and ' . (@names - 10) . ' more' : '');
}
