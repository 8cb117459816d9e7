#!/usr/bin/perl

# Servers are killed under load and started again, one after the other: no request fails, and while the
# checks say that a server is down, none is tried with it.
#
# TEST_TIMES is the number of deaths (8).

use strict;
use warnings;

use List::Util qw(sum0);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::App;

my $times = $ENV{TEST_TIMES} // 8;

my $t = Test::Upsync->new;
my @apps = map { Test::Upsync::App->new($t)->run } 1 .. 3;
my $servers = join ' ', map { 'server ' . $_->address . ' max_fails=0;' } @apps;
my $check = 'check interval=100 rise=2 fall=2 timeout=3000 type=http default_down=false;'
    . ' check_http_send "HEAD / HTTP/1.0\r\n\r\n";';

# Nothing but the checks keeps requests away from a server: there are no max_fails.
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000;
    log_format tries '\$msec \$request_time \$status \$uri \$upstream_addr';
    upstream closed { $servers $check }
    upstream kept { $servers $check keepalive 8; }
    upstream posted { server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        access_log tries.log tries;
        error_log error.log alert;
        proxy_next_upstream error timeout;
        location /closed { proxy_pass http://closed; }
        location /posted { proxy_pass http://posted; }
        location /kept {
            proxy_pass http://kept;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { dyups_interface; }
        location /status { check_status csv; }
    }
}
EOF
$t->run;
my $posted = http('POST', $t->port(1), '/upstream/posted', body => "$check $servers");
is($posted->{status}, 200, 'a list is posted') or diag $posted->{body};
my @ways = qw(closed kept posted);

# Of a server, in all upstreams.
sub is_everywhere {
    my ($app, $verdict) = @_;
    my $address = $app->address;
    my $csv = http_get($t->port(1), '/status')->{body};
    return @ways == (() = $csv =~ /^\d+,\w+,\Q$address\E,$verdict,/mg);
}

wait_until { !grep { !is_everywhere($_, 'up') } @apps } 10, 'all are up';

# The clients are few and wait a little, so that the checks and this test have some of the machine.
my $paths = join ', ', map { "\"/$_\"" } @ways;
my $script = $t->write_file('load.lua', <<"EOF");
local paths = { $paths }
local number = 0
delay = function() return 2 end
request = function()
    number = number + 1
    return wrk.format("GET", paths[number % #paths + 1])
end
EOF
my $wrk = wrk('http://127.0.0.1:' . $t->port(0), connections => 12, seconds => 3600, script => $script,
    background => 1, pid => \my $pid);

# Times when a server was known to be down: address => [[from, to], ...]. And how long that took.
my (%known, @down, @up);
for my $round (1 .. $times) {
    my $app = $apps[ $round % @apps ];
    my $killed = time;
    $app->kill;
    wait_until { is_everywhere($app, 'down') } 15 or last;
    my $known = time;
    push @down, $known - $killed;
    # Requests that would be tried with it, were it not known.
    sleep 0.4;
    my $started = time;
    push @{ $known{ $app->address } }, [ $known, $started ];
    $app->run;
    wait_until { is_everywhere($app, 'up') } 15 or last;
    push @up, time - $started;
    my $back = time;
    wait_until { $app->requests('GET', $back) } 10 or last;
}
is(scalar @down, $times, "$times deaths are noticed");
is(scalar @up, $times, 'and as many returns');
note sprintf 'noticed after %.3f s on average, returns after %.3f s', map { sum0(@$_) / (@$_ || 1) } \@down, \@up;

kill 'INT', $pid;
my $result = $wrk->();
cmp_ok($result->{requests}, '>', 100 * $times, "requests: $result->{requests}");
is($result->{non_2xx}, 0, 'none failed') or diag $result->{output};
is($result->{socket_errors}, 0, 'no connection did') or diag $result->{output};

$t->stop;
my ($tried, $meanwhile, @wrong) = (0, 0);
open my $log, '<', $t->testdir . '/tries.log' or die "tries.log: $!";
while (<$log>) {
    my ($end, $took, $status, $uri, @tried) = split /[ ,\n]+/;
    # nginx's clock is read once in a turn of its event loop, and written to the millisecond: a request
    # that seems to begin 10 ms after something began after it.
    my $begin = $end - $took - 0.01;
    $tried++ if @tried > 1;
    for my $address (keys %known) {
        next unless grep { $begin > $_->[0] && $end < $_->[1] } @{ $known{$address} };
        $meanwhile++;
        push @wrong, $_ if grep { $_ eq $address } @tried;
    }
}
cmp_ok($meanwhile, '>', 20 * $times, "requests while a server was down: $meanwhile");
is(scalar @wrong, 0, 'none was tried with it') or diag @wrong[ 0 .. ($#wrong < 9 ? $#wrong : 9) ];
cmp_ok($tried, '>', 0, "requests that were tried twice, before it was known: $tried");

$t->done;
