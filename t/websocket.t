#!/usr/bin/perl

# WebSocket tunnels stay open while the list changes, their server leaves and others come; a
# connection counts until its tunnel closes, and for the server of the list that it was made for.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $changes = $ENV{TEST_TIMES} // 50;

my $t = Test::Upsync->new;
my @servers = map { '127.0.0.1:' . $t->free_port } 1 .. 5;
push @{ $t->{parts} }, Test::Upsync::Process->spawn(code => \&websocket_server, output => $t->testdir . '/echo.log');
wait_until { !grep { !IO::Socket::INET->new(PeerAddr => $_) } @servers } 10, 'the servers listen';

$t->write_file_expand('nginx.conf', <<'CONF');
%%TEST_GLOBALS%%
worker_processes 2;
events { worker_connections 2048; }
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app {
        server 127.0.0.1:1 down;
        keepalive 4;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location / {
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header X-Worker $pid;
        }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location = /clients { stub_status; }
        location / { dyups_interface; }
    }
}
CONF
$t->run;

my ($one, $two, $three, $four, $five) = @servers;
my %limit = map { $_ => 'max_conns=10' } $one, $two, $three;

ok(post($one, $two), 'two servers of 10 connections each');
my @tunnels = open_tunnels(20);
is_deeply(served_by(@tunnels), { $one => 10, $two => 10 }, '20 tunnels, 10 to each');
is(scalar keys %{ { map { $_->{worker} => 1 } @tunnels } }, 2, 'through both workers');
is_deeply(connections(), { $one => 10, $two => 10 }, 'which are counted');
is(open_tunnel()->{status}, 502, 'there is no room for another');
echo_all(@tunnels);

# First the servers of the tunnels stay while others come and go, then one leaves, then the other.
subtest "$changes changes" => sub {
    my (@wrong, %late);
    for my $number (1 .. $changes) {
        my @mine = $number < $changes / 2 ? ($one, $two) : $number < $changes * 3 / 4 ? ($one) : ();
        my @list = (@mine, ($four, $five)[ $number % 2 ], $number % 3 ? $three : ());
        post(@list) or push @wrong, "$number: not posted";
        my $counts = connections();
        $counts->{$_} == 10 or push @wrong, "$number: $_ has $counts->{$_} connections" for @mine;
        my $dead = grep { !echoes($_) } @tunnels;
        push @wrong, "$number: $dead tunnels are dead" if $dead;
        my $new = open_tunnel();
        $late{ $new->{server} // $new->{status} }++;
        push @wrong, "$number: a new tunnel goes to " . ($new->{server} // $new->{status})
            unless echoes($new) && grep { $_ eq $new->{server} } grep { $_ ne $one && $_ ne $two } @list;
    }
    is(join("\n", @wrong), '', 'bytes flow on all tunnels, connections are counted');
    cmp_ok(scalar keys %late, '>=', 3, 'new tunnels go to new servers') or diag explain \%late;
};

subtest 'the counts of a server that left and came back are its own' => sub {
    ok(post($three), 'the servers of the tunnels have left');
    wait_until { connections()->{$three} == 0 } 5, 'the new one has no connection yet';
    ok(post($one, $three), 'one comes back');
    my @new = open_tunnels(20);
    is_deeply(served_by(@new), { $one => 10, $three => 10 }, 'and has its 10 connections');
    is(open_tunnel()->{status}, 502, 'and no more');
    echo_all(@tunnels, @new);
    close_all(splice @tunnels);
    wait_until { clients() == @new } 5, 'the old tunnels close';
    is_deeply(connections(), { $one => 10, $three => 10 }, 'which takes nothing from the new ones');
    is(open_tunnel()->{status}, 502, 'so there is still no room');
    echo_all(@new);
    @tunnels = @new;
};

subtest 'closing gives connections back' => sub {
    my @of_a = grep { $_->{server} eq $one } @tunnels;
    @tunnels = grep { $_->{server} ne $one } @tunnels;
    close_all(splice @of_a, 0, 3);
    wait_until { connections()->{$one} == 7 } 5, 'three closed by the client';
    syswrite $_->{socket}, "close\n" for @of_a[ 0, 1 ];
    wait_until { connections()->{$one} == 5 } 5, 'two closed by the server';
    is(sysread($_->{socket}, my $rest, 100), 0, 'which the client sees') for splice @of_a, 0, 2;
    my @new = open_tunnels(5);
    is_deeply(served_by(@new), { $one => 5 }, 'five new ones find room');
    is(open_tunnel()->{status}, 502, 'and no more');
    echo_all(@tunnels, @of_a, @new);
    close_all(@tunnels, @of_a, @new);
    wait_until { !grep { $_ } values %{ connections() } } 5, 'in the end none is counted';
};

$t->done;

# Each connection: a request is answered by 101, then lines by the same lines.
sub websocket_server {
    my $select = IO::Select->new;
    my (%listening, %address, %buffer);
    for my $address (@servers) {
        my $socket = IO::Socket::INET->new(LocalAddr => $address, Listen => 128, ReuseAddr => 1) or die "$address: $!\n";
        $listening{$socket} = $address;
        $select->add($socket);
    }
    while (my @ready = $select->can_read) {
        for my $socket (@ready) {
            if ($listening{$socket}) {
                my $client = $socket->accept or next;
                ($address{$client}, $buffer{$client}) = ($listening{$socket}, '');
                $select->add($client);
                next;
            }
            my $read = sysread $socket, $buffer{$socket}, 65536, length $buffer{$socket};
            my $answer = $read ? answer($address{$socket}, \$buffer{$socket}) : undef;
            if (defined $answer) {
                syswrite $socket, $answer;
                next;
            }
            $select->remove($socket);
            delete @{$_}{$socket} for \%address, \%buffer;
            close $socket;
        }
    }
    return;
}

sub answer {
    my ($address, $buffer) = @_;
    my $answer = '';
    if ($$buffer =~ s/^GET .*?\r\n\r\n//s) {
        my ($worker) = $& =~ /^X-Worker: (\d+)/m;
        $answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            . "X-Server: $address\r\nX-Worker: $worker\r\n\r\n";
    }
    return $answer if $$buffer =~ /^GET /;
    while ($$buffer =~ s/^(.*\n)//) {
        return if $1 eq "close\n";
        $answer .= $1;
    }
    return $answer;
}

sub post {
    my $body = join '', map { "server $_ " . ($limit{$_} // '') . ";\n" } @_;
    return http('POST', $t->port(1), '/upstream/app', body => $body)->{status} == 200;
}

sub connections {
    my $list = json(http_get($t->port(1), '/upstream/app?format=json')->{body});
    return { map { $_->{server} => $_->{connections} } @{ $list->{servers} } };
}

# Connections of clients that nginx has, but for that of the question.
sub clients { return http_get($t->port(1), '/clients')->{body} =~ /^Active connections: (\d+)/ ? $1 - 1 : -1 }

sub open_tunnel {
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1:' . $t->port(0)) or return { status => 0 };
    syswrite $socket, "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    my $head = receive($socket, qr/\r\n\r\n/);
    my %tunnel = (socket => $socket, status => $head =~ m{^HTTP/1.1 (\d+)} ? $1 : 0);
    @tunnel{qw(server worker)} = ($head =~ /^X-Server: (\S+)/m, $head =~ /^X-Worker: (\d+)/m) if $tunnel{status} == 101;
    return \%tunnel;
}

sub open_tunnels {
    my $number = shift;
    my @tunnels = map { open_tunnel() } 1 .. $number;
    is(scalar(grep { $_->{status} == 101 } @tunnels), $number, "$number tunnels open");
    return @tunnels;
}

sub receive {
    my ($socket, $until) = @_;
    my ($bytes, $select, $deadline) = ('', IO::Select->new($socket), time + 5);
    while ($bytes !~ $until) {
        my $left = $deadline - time;
        last unless $left > 0 && $select->can_read($left) && sysread $socket, $bytes, 65536, length $bytes;
    }
    return $bytes;
}

sub served_by {
    my %number;
    $number{ $_->{server} // $_->{status} }++ for @_;
    return \%number;
}

my $said = 0;

sub echoes {
    my $tunnel = shift;
    return 0 unless $tunnel->{status} == 101;
    my $line = 'line ' . ++$said . ' ' . 'x' x rand(2000) . "\n";
    local $SIG{PIPE} = 'IGNORE';
    syswrite $tunnel->{socket}, $line or return 0;
    return receive($tunnel->{socket}, qr/\n/) eq $line;
}

sub echo_all {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(scalar(grep { !echoes($_) } @_), 0, 'bytes flow both ways on all of ' . @_);
}

sub close_all { close $_->{socket} for @_; return }
