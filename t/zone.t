#!/usr/bin/perl

# How much fits into the zone, what happens when it is full, and what a change of a long list
# costs.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my ($server) = $t->backends(1)->addresses;

sub configure {
    my ($zone, $interval) = @_;
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    $zone
    upstream app {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=$interval;
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location / { proxy_pass http://app; }
        location /list { upstream_show; }
    }
}
EOF
}

$consul->kv_put("upstreams/app/$server", '');

subtest 'a zone that is too small' => sub {
    configure('upsync_zone 128k;', '2s');
    $t->run;
    wait_until { count() == 1 } 10, 'one server';
    fill(1, 999);
    $t->log_like(qr/\[error\].*upstream "app": consul \S+: new list refused: no memory in the shared zone, raise "upsync_zone", keeping the last list \(1 server\)/, 'refused, and why');
    is(count(), 1, 'as a whole');
    is(http_get($t->port(0), '/')->{status}, 200, 'the old list serves');
    is(() = $t->log =~ /list refused/g, 1, 'said once');
    $t->stop;

    # So many that their slots alone fill the zone.
    fill(1000, 1_999);
    my $mark = $t->nginx->log_mark;
    $t->run;
    $t->log_like(qr/new list refused/, 'twice as many: refused', $mark);
    $consul->kv_delete("upstreams/app/10.0", recurse => 1);
    fill(1, 299);
    wait_until { count() == 300 } 15, 'a list that fits comes in: the refused one has left nothing';
    $t->stop;
};

subtest '10,000 servers in a zone of the default size' => sub {
    configure('', '200ms');
    $t->run;
    fill(10, 9_999);
    wait_until { count() == 10_000 } 60, 'fit';
    wait_until { $t->log =~ /: 10000 servers .* pages free/ } 5, 'logged';
    note $t->log =~ /(10000 servers .*)/;
    is(http_get($t->port(0), '/list?app')->{body} =~ tr/\n//, 10_001, 'all are shown');

    my @workers = $t->workers;
    my @held;
    for my $change (1 .. 10) {
        my ($mark, %before) = ($t->nginx->log_mark, map { $_ => cpu($_) } @workers);
        $consul->kv_put('upstreams/app/10.0.0.1:1', qq({"weight":$change,"down":1}));
        wait_until { $t->log($mark) =~ /1 changed/ } 10;
        ask_all(@workers);
        push @held, map { (cpu($_) - $before{$_}) / 1e6 } @workers;
    }
    @held = sort { $a <=> $b } @held;
    note sprintf 'CPU of the event loop of a worker for one change: median %.1f ms, most %.1f ms',
        $held[ @held / 2 ], $held[-1];
    cmp_ok($held[ @held / 2 ], '<', 10, 'below 10 ms');
    $t->stop;
};

subtest '30,000 servers in a larger zone' => sub {
    configure('upsync_zone 32m;', '200ms');
    $t->run;
    fill(10_000, 29_999);
    wait_until { count() == 30_000 } 90, 'fit';
    $consul->kv_delete("upstreams/app/$server");
    wait_until { count() == 29_999 } 30, 'one less';
    $t->stop;
};

$t->done;

sub count {
    return http_get($t->port(0), '/list?app', timeout => 20)->{body} =~ /count: (\d+)/ ? $1 : -1;
}

# Servers number FROM to TO, none of them used.
sub fill {
    my ($from, $to) = @_;
    my $key = sub { my $n = shift; sprintf 'upstreams/app/10.0.%d.%d:1', $n / 250, $n % 250 };
    $consul->kv_put_many({ map { $key->($_) => '{"weight":1,"max_fails":2,"fail_timeout":10,"down":1}' } $from .. $to });
}

# Nanoseconds on a processor, of the thread that runs the event loop.
sub cpu {
    my $pid = shift;
    open my $stat, '<', "/proc/$pid/task/$pid/schedstat" or return 0;
    return (split ' ', <$stat>)[0];
}

# Requests until each worker has had some.
sub ask_all {
    http_get($t->port(0), '/') for 1 .. 10 * @_;
}
