#!/usr/bin/perl

# least_conn over more servers than a worker looks at one by one: what a server has less to do is known
# to all workers with the next request, also if a worker that held its connections is killed.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use List::Util qw(shuffle sum0);
use Test::More;

use lib 't/lib';
use Test::Upsync;

my $servers = 24;
my $t = Test::Upsync->new;

$t->write_file_expand('nginx.conf', <<'EOF');
%%TEST_GLOBALS%%
worker_processes 3;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app { least_conn; upsync_lb least_conn; server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location / { proxy_pass http://app; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { dyups_interface; }
    }
    server {
        listen 127.0.0.1:%%PORT_2%% reuseport;
        add_header X-Pid $pid;
        return 204;
    }
}
EOF
$t->run;

my @own = map {
    IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 64, ReuseAddr => 1) || die "listen: $!\n"
} 1 .. $servers;
sub address_of { return '127.0.0.1:' . $_[0]->sockport }

# The requests that each server has, by its address.
my %held = map { address_of($_) => [] } @own;

# So many requests, one after the other, each of which stays; the servers that were asked.
sub hold {
    my $number = shift;
    my @asked;
    for (1 .. $number) {
        my $client = http_connect($t->port(0));
        $client->send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        my ($listener) = IO::Select->new(@own)->can_read(5) or return @asked;
        push @asked, address_of($listener);
        push @{ $held{ $asked[-1] } }, { client => $client, server => scalar $listener->accept };
    }
    return sort @asked;
}

# The server answers, and the client has it: by then nginx has counted.
sub answer {
    for my $request (map { splice @{ $held{$_} }, 0, 1 } @_) {
        syswrite $request->{server}, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        close $request->{server};
        my $socket = $request->{client}{socket};
        1 while IO::Select->new($socket)->can_read(5) && sysread $socket, my $buffer, 4096;
    }
    return;
}

sub connections {
    my $answer = http_get($t->port(1), '/upstream/app?format=json');
    return sum0 map { $_->{connections} } @{ json($answer->{body})->{servers} };
}

my $answer = http('POST', $t->port(1), '/upstream/app', body => join '', map { 'server ' . address_of($_) . ' max_fails=0;' } @own);
is($answer->{status}, 200, 'listed');
my @all = sort map { address_of($_) } @own;

is_deeply([ hold($servers) ], \@all, 'each is asked once');
is_deeply([ hold($servers) ], \@all, 'and once more');
for my $round (1 .. 12) {
    my @free = sort +(shuffle @all)[ 0 .. 6 ];
    answer(@free);
    wait_until { connections() == 2 * $servers - @free } 5;
    is_deeply([ hold(scalar @free) ], \@free, "those that have less to do are asked next: round $round");
}

# One of the workers dies with what it holds; the others have to count anew.
my @victims = ($t->nginx->workers)[0];
$t->nginx->expect_log(qr/process $victims[0] exited on signal 9/);
my $before = connections();
kill 'KILL', @victims;
my $lost = 0;
wait_until { $lost = $before - connections(); $lost > 0 && 3 == $t->nginx->workers } 10, 'what a killed worker held is given back';
my %left;
for my $address (@all) {
    # Its clients have been cut off.
    @{ $held{$address} } = grep { !IO::Select->new($_->{client}{socket})->can_read(0) } @{ $held{$address} };
    $left{$address} = @{ $held{$address} };
}
is(sum0(values %left), $before - $lost, "as many as its clients: $lost");
hold($lost);
is_deeply({ map { $_ => scalar @{ $held{$_} } } @all }, { map { $_ => 2 } @all }, 'and goes to who had lost it');

answer(@all) for 1 .. 2;
wait_until { connections() == 0 } 5, 'in the end none is counted';
$t->done;
