#!/usr/bin/perl

# The counts of connections by which least_conn chooses, and which max_conns limits: they stay exact
# over retries, failures of all kinds, clients that go, and workers that are killed.
#
# TEST_REQUESTS is the number of requests of the storm (30,000; 1,000,000 takes some minutes).

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use List::Util qw(max sum0);
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Process;

my $requests = $ENV{TEST_REQUESTS} // 30_000;
my $kills = 6;

my $t = Test::Upsync->new;
my ($good) = $t->backends(1)->addresses;
my ($broken) = $t->backends(1, location => 'return 500 "broken\n";')->addresses;
my ($closing) = $t->backends(1, location => 'return 444;')->addresses;
my $dead = '127.0.0.1:' . $t->free_port;
# Nobody accepts its connections.
my $mute = listener(16);
# A child of the test answers for them, later the test itself.
my @own = map { listener(512) } 1 .. 4;
my @own_addresses = map { address_of($_) } @own;

my $servers = join '', map { "server $_ max_fails=0;" }
    $good, $broken, $closing, $dead, address_of($mute), @own_addresses;
my @names = qw(posted kept block);

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 4;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    upstream posted { server 127.0.0.1:1 down; }
    upstream kept { server 127.0.0.1:1 down; keepalive 4; }
    upstream block { least_conn; upsync_lb least_conn; $servers }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport backlog=4096;
        error_log error.log alert;
        keepalive_requests 1000;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_connect_timeout 100ms;
        proxy_read_timeout 100ms;
        proxy_next_upstream error timeout http_500;
        location /held { proxy_read_timeout 1h; proxy_pass http://\$arg_upstream; }
        location /posted { proxy_pass http://posted; }
        location /kept { proxy_pass http://kept; }
        location /block { proxy_pass http://block; }
        # A part of the answer is there when the client goes.
        location /posted/unbuffered { proxy_buffering off; proxy_pass http://posted; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
EOF
$t->run;

sub listener {
    my $backlog = shift;
    my @address = (LocalAddr => '127.0.0.1', LocalPort => $t->free_port);
    return IO::Socket::INET->new(@address, Listen => $backlog, ReuseAddr => 1) || die "listen: $!\n";
}

sub address_of { return '127.0.0.1:' . $_[0]->sockport }

sub post {
    my ($upstream, $body) = @_;
    my $answer = http('POST', $t->port(1), "/upstream/$upstream", body => $body, timeout => 20);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($answer->{status}, 200, "$upstream posted") || diag $answer->{body};
}

# Of all servers of an upstream: address => number.
sub shown {
    my ($upstream, $what) = @_;
    my $answer = http_get($t->port(1), "/upstream/$upstream?format=json");
    # Its worker may just have been killed.
    return $answer->{status} == 200 ? { map { $_->{server} => $_->{$what} } @{ json($answer->{body})->{servers} } } : undef;
}

sub none_held {
    my $upstream = shift;
    my $held = {};
    my $none = wait_until { $held = shown($upstream, 'connections'); $held && !sum0 values %$held } 10;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok($none, "$upstream: no connection is counted any more") || diag explain $held;
}

# Answers for the test's servers: the header after a moment, the rest after another.
sub serve {
    $SIG{PIPE} = 'IGNORE';
    my $select = IO::Select->new(@own);
    my %is_listener = map { $_ => 1 } @own;
    my (%head, @due);
    for (;;) {
        for my $socket ($select->can_read(@due ? max(0, $due[0][0] - time) : undef)) {
            if ($is_listener{$socket}) {
                my $new = $socket->accept or next;
                $head{$new} = '';
                $select->add($new);
            } elsif (!sysread $socket, $head{$socket}, 4096, length $head{$socket}) {
                $select->remove($socket);
                delete $head{$socket};
                close $socket;
            } elsif ($head{$socket} =~ s/^.*?\r\n\r\n//s) {
                push @due, [ time + .001, $socket, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nha" ],
                    [ time + .002, $socket, "lf.\n" ];
            }
        }
        while (@due && $due[0][0] <= time) {
            my (undef, $socket, $bytes) = @{ shift @due };
            syswrite $socket, $bytes if exists $head{$socket};
        }
        @due = sort { $a->[0] <=> $b->[0] } @due;
    }
}

# Clients that go at any time of their requests, politely or not.
sub aborting_clients {
    my @clients = map {
        my $client = http_connect($t->port(0));
        my $path = $_ % 4 ? "/$names[ $_ % 3 ]" : '/posted/unbuffered';
        $client->send("GET $path HTTP/1.1\r\nHost: a\r\n\r\n");
        $client;
    } 1 .. 24;
    for (0 .. $#clients) {
        my $socket = $clients[$_]{socket} or next;
        sleep .0005 if $_ % 6 == 0;
        IO::Select->new($socket)->can_read(.01) if $_ % 3 == 0;
        setsockopt $socket, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $_ % 2;
        close $socket;
    }
    return scalar @clients;
}

sub requests { return sum0 map { values %{ shown($_, 'requests') // {} } } @names }

post($_, "least_conn; $servers") for qw(posted kept);
is(shown($_, 'connections') && keys %{ shown($_, 'connections') }, 9, "$_: nine servers") for @names;

subtest "a storm of $requests requests" => sub {
    my $child = Test::Upsync::Process->spawn(output => $t->testdir . '/serve.log', code => \&serve);
    my $paths = join ', ', map { "\"/$_\"" } @names;
    my $script = $t->write_file('storm.lua', <<"EOF");
local paths = { $paths }
local number = 0
request = function()
    number = number + 1
    return wrk.format("GET", paths[number % #paths + 1])
end
EOF
    my $wrk = wrk('http://127.0.0.1:' . $t->port(0), connections => 48, seconds => 3600, script => $script,
        background => 1, pid => \my $pid);
    my ($gone, $killed) = (0, 0);
    my ($done, $start) = (0, time);
    my $deadline = $start + 60 + $requests / 200;
    while (time < $deadline) {
        $gone += aborting_clients();
        # The answer is from one of the workers that may just be killed.
        $done = max($done, requests());
        last if $done >= $requests;
        next if $done < $requests * ($killed + 1) / ($kills + 1);
        my @workers = $t->workers;
        $t->kill_worker($workers[ $killed % @workers ]) if @workers;
        $killed++;
        if ($killed == $kills / 2) {
            # Lists change too: the servers stay.
            post($_, "least_conn; $servers") for qw(kept posted);
        }
    }
    kill 'INT', $pid;
    my $result = $wrk->();
    cmp_ok($done, '>=', $requests, "requests to servers: $done, by clients of wrk: $result->{requests}");
    note sprintf '%.1f s', time - $start;
    is($killed, $kills, 'killed workers');
    cmp_ok($gone, '>', 100, "clients that went: $gone");
    my %failures = map { %{ shown($_, 'failures') } } 'posted';
    cmp_ok($failures{$_} // 0, '>', 0, 'failures of each that fails') for $broken, $closing, $dead, address_of($mute);
    none_held($_) for @names;
    $child->stop;
};

# Whatever was accepted by then is of the past.
for my $listener (@own) {
    $listener->accept while IO::Select->new($listener)->can_read(0);
}

# Requests that nobody answers, as many as there are servers of the test: who was asked.
my @held;

sub hold {
    my $name = shift;
    my %asked = map { $_ => 0 } @own_addresses;
    for (@own) {
        my $client = http_connect($t->port(0));
        $client->send("GET /held?upstream=$name HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        my ($listener) = IO::Select->new(@own)->can_read(5) or next;
        $asked{ address_of($listener) }++;
        push @held, { client => $client, server => scalar $listener->accept };
    }
    return \%asked;
}

sub let_go { close $_->{client}{socket} for splice @held }

sub each_has { my $number = shift; return { map { $_ => $number } @own_addresses } }

# One that is counted too often would be passed over, one that is counted too little be asked twice.
subtest 'then' => sub {
    for my $name (qw(posted kept)) {
        post($name, 'least_conn;' . join '', map { "server $_ max_conns=3;" } @own_addresses);
        is_deeply(hold($name), each_has(1), "$name: each is asked for the $_. time") for 1 .. 3;
        is(http_get($t->port(0), "/$name")->{status}, 502, 'then max_conns is reached');
        is_deeply(shown($name, 'connections'), each_has(3), 'as is shown');
        let_go();
        none_held($name);
    }
};

subtest 'a worker that is killed while it is shutting down' => sub {
    # Requests that nobody answers say nothing about the servers here.
    post('posted', 'least_conn;' . join '', map { "server $_ max_fails=0;" } @own_addresses);
    is_deeply(hold('posted'), each_has(1), 'requests');
    ok($t->reload, 'reloaded');
    my @old = $t->old_workers;
    cmp_ok(scalar @old, '>', 0, 'they hold workers that would end');
    $t->nginx->expect_log(map { qr/process $_ exited on signal 9/ } @old);
    kill 'KILL', @old;
    wait_until { !$t->old_workers } 5, 'which are killed';
    # Nobody takes their place. Whoever comes next may find it out.
    wait_until { http_get($t->port(0), '/posted'); !sum0 values %{ shown('posted', 'connections') } } 10, 'what they held is given back';
    for my $listener (@own) {
        $listener->accept while IO::Select->new($listener)->can_read(0);
    }
    is_deeply(hold('posted'), each_has(1), 'and each is asked again');
    let_go();
};

$t->done;
