#!/usr/bin/perl

# A server comes and goes every 20 ms while 1,000 requests are in flight at all times: none
# fails, and none goes to a server that has left.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $seconds = $ENV{TEST_SECONDS} // 20;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my $backends = $t->backends(3);
my @servers = $backends->addresses;

$t->write_file_expand('nginx.conf', <<'EOF');
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000;
    log_format picks '$msec $upstream_response_time $upstream_addr $status';
    upstream app {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=10ms;
        keepalive 512;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% backlog=4096;
        location / {
            access_log picks.log picks buffer=64k flush=1s;
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }
        location /list { upstream_show; }
    }
}
EOF
$consul->kv_put("upstreams/app/$_", '') for @servers;
$t->run;
wait_until { listed() =~ /count: 3/ } 10, 'all three are listed';

my $load = wrk('http://127.0.0.1:' . $t->port(0) . '/',
    connections => 1000, seconds => $seconds, background => 1);
my ($toggles, @absent) = churn($servers[2], time + $seconds - 1);
my $result = $load->();

cmp_ok($result->{requests}, '>', 1000, "requests: $result->{requests}, changes: $toggles");
cmp_ok($toggles, '>=', $seconds * 5, 'the list changed all the time');
is($result->{non_2xx}, 0, 'no request failed');
is($result->{socket_errors}, 0, 'no connection failed');

$t->stop;
my ($checked, @late) = late_picks($servers[2]);
is("@late", '', 'no request to a server more than 100 ms after its removal was seen')
    or diag join ", ", map { sprintf "%.3f", $_ } @late;
cmp_ok($checked, '>', 100, "requests in the times that were looked at: $checked");

$t->done;

sub listed { return http_get($t->port(0), '/list?app')->{body} }

# Adds and removes a server every 20 ms. Now and then it stays away for 500 ms, and is looked for
# in the list: from then on until it is put back nobody may go there.
sub churn {
    my ($server, $until) = @_;
    my ($toggles, @absent, $there) = (0);
    my $next = time;
    $there = 1;
    while (time < $until) {
        $there ? $consul->kv_delete("upstreams/app/$server") : $consul->kv_put("upstreams/app/$server", '');
        $there = !$there;
        $toggles++;
        if (!$there && $toggles % 25 == 1) {
            my $deadline = time + 10;
            sleep 0.001 while listed() =~ /\Q$server\E/ && time < $deadline;
            my $seen = time;
            sleep 0.5;
            push @absent, [ $seen, time - 0.1 ];
        }
        $next += 0.02;
        my $rest = $next - time;
        $rest > 0 ? sleep $rest : ($next = time);
    }
    return ($toggles, @absent);
}

# How many requests were sent in those times, and those among them that went to the server. The
# log has the end of a request and how long it was with the server, by a clock that nginx reads
# once in a turn of its event loop: so the times end a little before the server is put back.
sub late_picks {
    my $server = shift;
    my ($checked, @late) = (0);
    open my $log, '<', $t->testdir . '/picks.log' or die "picks.log: $!";
    while (<$log>) {
        my ($end, $took, $address) = split ' ';
        my $picked = $end - $took;
        next unless grep { $picked > $_->[0] + 0.1 && $picked < $_->[1] } @absent;
        $checked++;
        push @late, (sort { $a <=> $b } map { $picked - $_->[0] } grep { $picked > $_->[0] } @absent)[0] if $address eq $server;
    }
    return ($checked, @late);
}
