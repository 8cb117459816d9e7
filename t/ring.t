#!/usr/bin/perl

# `hash KEY consistent` over lists so long that their points are made beside the event loop: no request
# fails while they are, none goes to a server that has left, and then keys go where they go with a
# worker that has made them at its start.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $times = $ENV{TEST_TIMES} // 40;

my $t = Test::Upsync->new;
my ($first, $second) = map { ($t->backends(1)->addresses)[0] } 1 .. 2;
# Many addresses of one server that says which it was.
my $many = $t->free_port;

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    upsync_zone 64m;
    keepalive_requests 1000000;
    upstream app { hash \$arg_k consistent; server $first; }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        add_header X-Pid \$pid always;
        location / { proxy_pass http://app; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        client_max_body_size 16m;
        location / { dyups_interface; }
    }
    server {
        listen 0.0.0.0:$many;
        return 200 "\$server_addr\\n";
    }
}
EOF
$t->run;

sub post {
    my $answer = http('POST', $t->port(1), '/upstream/app', body => shift, timeout => 30);
    return $answer->{status} == 200 || diag("$answer->{status} $answer->{body}");
}

# Who answers a key, by worker.
sub who {
    my $key = shift;
    my %who;
    wait_until {
        my $answer = http_get($t->port(0), "/?k=$key");
        $who{ $answer->{headers}{'x-pid'} } = $answer->{body} =~ s/^hello world by |\s+$//gr;
        keys %who == 2;
    } 10;
    return \%who;
}

subtest 'one server in the place of another, again and again' => sub {
    # As many points as of 1,000 servers.
    my %list = map { $_ => "server $_ weight=1000;" } $first, $second;
    ok(post($list{$first}), 'the first');
    my $load = wrk('http://127.0.0.1:' . $t->port(0) . '/?k=1', connections => 8, seconds => 3600, background => 1, pid => \my $pid);
    my $wrong = 0;
    for my $turn (1 .. $times) {
        my $now = $turn % 2 ? $second : $first;
        post($list{$now}) or last;
        $wrong += grep { $_ ne $now } values %{ who($turn) };
    }
    kill 'INT', $pid;
    my $result = $load->();
    is($wrong, 0, "each answers as soon as it is there, $times times");
    is($result->{non_2xx}, 0, "no request failed of $result->{requests}");
    is($result->{socket_errors}, 0, 'and no connection');
};

subtest 'a list of 10,000' => sub {
    my $list = sub { join '', map { sprintf "server 127.%d.%d.%d:$many;", 1 + $_ / 40_000, $_ / 200 % 200, 1 + $_ % 200 } @_ };
    ok(post($list->(1 .. 10_000)), 'posted');
    my @keys = map { "key$_" } 1 .. 30;
    my $all = sub { return { map { my $who = who($_); $_ => join ' ', sort { $a cmp $b } keys %{ { reverse %$who } } } @keys } };
    my $before = {};
    # Both workers agree when both have made their points.
    wait_until { $before = $all->(); !grep { / / } values %$before } 20, 'the workers come to agree';
    ok($t->reload, 'reloaded: new workers make their points at their start');
    is_deeply($all->(), $before, 'and have the same');

    ok(post($list->(2 .. 10_000)), 'one server less');
    my %gone = map { $_ => 1 } grep { $before->{$_} eq '127.1.0.2' } @keys;
    my $after = $all->();
    is_deeply([ grep { !$gone{$_} && $after->{$_} ne $before->{$_} } @keys ], [], 'all other keys stay, from the first request on');
};

$t->done;
