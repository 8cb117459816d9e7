#!/usr/bin/perl

# Failures of the machine that nginx runs on are none of a server: when there is no free connection, no
# file descriptor, no local port or no route, or when a worker stood still, checks give no verdict. Each
# server here would be down by one failed check.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::App;
use Test::Upsync::Process;

# nginx in a network of its own, in which a test may use up the ports and take away a route.
package Test::Upsync::Namespace;

use parent -norequire, 'Test::Upsync::Nginx';

sub command {
    my $self = shift;
    return ('unshare', '--net', 'sh', '-c', "$self->{setup} && exec \"\$@\"", 'sh', $self->SUPER::command);
}

package main;

my $workers = 2;
# How long each failure lasts: many checks.
my $seconds = 1.5;

my $t = Test::Upsync->new;
my @apps = map { Test::Upsync::App->new($t)->run } 1 .. 2;
# Each of its checks is under way for most of the time.
my $slow = Test::Upsync::App->new($t, address => '0.0.0.0:' . $t->free_port, delay => 0.15)->run;
my @slow = map { $slow->address =~ s/^0\.0\.0\.0/127.2.0.$_/r } 1 .. 8;

my $check = 'rise=1 fall=1 timeout=2000 type=http default_down=false; check_http_send "HEAD / HTTP/1.0\r\n\r\n";';
my $servers = join ' ', map { 'server ' . $_->address . ';' } @apps;
my $slow_servers = join ' ', map { "server $_;" } @slow;
my $conf = <<"EOF";
%%TEST_GLOBALS%%
worker_processes $workers;
events { worker_connections CONNECTIONS; }
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app { check interval=100 $check $servers }
    SLOW
    server {
        listen 127.0.0.1:PORT reuseport;
        location / { proxy_pass http://app; }
        location /status { check_status csv; }
    }
}
EOF

sub verdicts {
    my $port = shift;
    return map { (split /,/)[ 2, 3 ] } split /\n/, http_get($port, '/status')->{body};
}

# Lines of the log that may be of a check. nginx itself tells about its clients, in lines that name them.
sub lines {
    my ($nginx, $mark) = @_;
    return grep { /upsync:|\[(?:crit|alert|emerg)\]|worker_connections/ && !/client: |while accepting new connection/ }
        split /\n/, $nginx->log($mark);
}

# None is down by the failure that is over now; then all are checked again, and found down when they are.
sub no_verdict {
    my ($nginx, $mark, %of) = @_;
    my $since = time;
    wait_until { !grep { !$_->() } @{ $of{asked}->($since) } } 15, 'then the servers are asked again';
    is(join("\n", grep { /: server \S+ is (?:down|up)\b/ } split /\n/, $nginx->log($mark)), '', 'no server was down by it');
    my %is = verdicts($of{port});
    is_deeply(\%is, { map { $_ => 'up' } keys %is }, 'and all are up');
    return;
}

# Asked twice since, each.
sub asked { my @apps = @_; return sub { my $since = shift; return [ map { my $app = $_; sub { $app->requests('HEAD', $since) >= 2 } } @apps ] } }

# As many lines as there are workers to whom it happened.
sub told_once {
    my ($nginx, $mark, $what) = @_;
    my @lines = lines($nginx, $mark);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    note for @lines;
    return cmp_ok(scalar @lines, '<=', $workers, "$what: at most one line of each worker: " . @lines) || diag join "\n", @lines;
}

subtest 'all connections of the workers are used up' => sub {
    my $port = $t->free_port;
    my $nginx = $t->another_nginx($conf =~ s/CONNECTIONS/64/r =~ s/SLOW//r =~ s/PORT/$port/r)->run;
    $nginx->expect_log(qr/64 worker_connections are not enough/);
    my $since = time;
    wait_until { !grep { $_->requests('HEAD', $since) < 2 } @apps } 10, 'the servers are asked';

    my $begin = $nginx->log_mark;
    my (@clients, %full);
    # A client that has sent a part of its request is not sent away in favour of others. Those that come
    # too late are, and each gets what the end of a check may have left.
    my $more = sub {
        for (1 .. shift) {
            push @clients, my $client = http_connect($port);
            $client->send("GET / HTTP/1.1\r\nHost: a\r\n");
        }
        $full{$_} = 1 for $nginx->log($begin) =~ /\[alert\] (\d+)#\d+: .*worker_connections are not enough/g;
        return keys %full == $workers;
    };
    wait_until { $more->(4) } 20, 'clients use up the connections of each worker';
    for (1 .. 30) {
        $more->(1);
        sleep 0.01;
    }
    # Until the workers have seen the last client.
    wait_until { my $size = $nginx->log_mark; sleep 0.2; $nginx->log_mark == $size } 3;

    my $mark = $nginx->log_mark;
    $since = time;
    sleep $seconds;
    my $meanwhile = map { $_->requests('HEAD', $since) } @apps;
    cmp_ok($meanwhile, '<', 2 * $seconds / 0.1 / 2, "checks have no connection: $meanwhile checks meanwhile");
    told_once($nginx, $mark, 'no connection');
    $_->close for @clients;
    no_verdict($nginx, $begin, port => $port, asked => asked(@apps));
    found_down($nginx);
    $nginx->stop;
};

subtest 'all file descriptors are used up' => sub {
    my $port = $t->free_port;
    my $nginx = $t->another_nginx($conf =~ s/CONNECTIONS/512/r =~ s/SLOW//r =~ s/PORT/$port/r)->run;
    if (grep { !limit($_, 1024) } $nginx->workers) {
        $nginx->stop;
        plan skip_all => 'no prlimit for these workers here';
    }
    # If nginx's own functions tell it.
    $nginx->expect_log(qr/socket\(\) failed \(24/);
    my $since = time;
    wait_until { !grep { $_->requests('HEAD', $since) < 2 } @apps } 10, 'the servers are asked';

    my $mark = $nginx->log_mark;
    # What is open stays open; the next one would be too many.
    is(scalar(grep { limit($_, 3) } $nginx->workers), $workers, 'no worker may open another one');
    $since = time;
    sleep $seconds;
    my $meanwhile = map { $_->requests('HEAD', $since + 0.2) } @apps;
    is($meanwhile, 0, 'checks have no socket');
    told_once($nginx, $mark, 'no file descriptor');
    limit($_, 1024) for $nginx->workers;
    no_verdict($nginx, $mark, port => $port, asked => asked(@apps));
    found_down($nginx);
    $nginx->stop;
};

# What came while a worker stood still is there when it goes on, as is the end of the time that a check
# had: whichever it looks at first.
subtest 'workers stand still for longer than a check may take' => sub {
    my $port = $t->free_port;
    my $more = "upstream slow { check interval=200 $check $slow_servers }";
    my $nginx = $t->another_nginx($conf =~ s/CONNECTIONS/512/r =~ s/SLOW/$more/r =~ s/PORT/$port/r)->run;
    my $since = time;
    wait_until { $slow->requests('HEAD', $since) > 3 * @slow } 15, 'the servers are asked';

    my $mark = $nginx->log_mark;
    my @pids = $nginx->workers;
    kill 'STOP', @pids;
    sleep 3;
    kill 'CONT', @pids;
    no_verdict($nginx, $mark, port => $port, asked => sub {
        my $since = shift;
        return [ sub { $slow->requests('HEAD', $since) >= 4 * @slow } ];
    });
    told_once($nginx, $mark, 'late');
    is_deeply([ sort $nginx->workers ], [ sort @pids ], 'by the same workers');
    found_down($nginx);
    $nginx->stop;
};

# A unix socket is refused within connect(), which is a failure of the server like another.
subtest 'a failure that is told at once' => sub {
    my $port = $t->free_port;
    my $refused = '127.0.0.1:' . $t->free_port;
    my $more = "upstream slow { check interval=100 $check server $refused; server unix:${\$t->testdir}/nobody.sock; }";
    my $nginx = $t->another_nginx($conf =~ s/CONNECTIONS/512/r =~ s/SLOW/$more/r =~ s/PORT/$port/r)->run;
    my @fall;
    wait_until {
        @fall = map { (split /,/)[5] } grep { /,slow,/ } split /\n/, http_get($port, '/status')->{body};
        @fall == 2 && $fall[0] >= 20;
    } 30, 'a port is refused again and again';
    cmp_ok($fall[1], '>=', $fall[0] / 2, "and so is a socket: @fall times");
    $nginx->stop;
};

subtest 'in a network of its own' => sub {
    my $setup = 'ip link set lo up && ip address add 10.9.9.9/32 dev lo'
        . ' && echo "40000 40099" >/proc/sys/net/ipv4/ip_local_port_range';
    plan skip_all => 'needs unshare --net, as root'
        if $> != 0 || system("unshare --net sh -c '$setup' >/dev/null 2>&1") != 0 || system('nsenter --version >/dev/null 2>&1') != 0;
    my $socket = 'unix:' . $t->testdir . '/namespace.sock';
    my @here = ('127.0.0.1:8080', '127.0.0.2:8080');
    my $away = '10.9.9.9:8080';
    my $nowhere = '[2001:db8::1]:8080';
    my $here = join ' ', map { "server $_;" } @here;
    my $more = join ' ', map { "server 127.0.1.$_:8080;" } 1 .. 8;
    my $nginx = $t->_nginx('namespace', $t->_dir('namespace'), class => 'Test::Upsync::Namespace', setup => $setup);
    $t->write_file_expand('namespace-1/nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes $workers;
events { worker_connections 1024; }
http {
    %%TEST_GLOBALS_HTTP%%
    log_format asked '\$msec \$server_addr';
    upstream here { check interval=200 $check $here }
    upstream more { check interval=200 $check $more }
    upstream away { check interval=200 $check server $away; server $nowhere; }
    server {
        listen $socket;
        location /status { check_status csv; }
        location / { proxy_pass http://here; }
    }
    server {
        listen 0.0.0.0:8080;
        access_log asked.log asked;
        location / { return 200 "well\\n"; }
    }
}
EOF
    $nginx->run;
    my @inside = ('nsenter', "--net=/proc/@{[ $nginx->pid ]}/ns/net");
    my $asked = sub {
        my ($since, $address) = @_;
        $address =~ s/:\d+$//;
        return scalar grep { my ($time, $asked) = split ' '; $time >= $since && $asked eq $address }
            split /\n/, $t->read_file('namespace-1/asked.log');
    };
    my $all = sub { my $since = shift; return [ map { my $address = $_; sub { $asked->($since, $address) >= 2 } } @here, $away ] };
    my $start = time;
    wait_until { !grep { !$_->() } @{ $all->($start) } } 10, 'the servers are asked';

    subtest 'no local port' => sub {
        my $begin = $nginx->log_mark;
        my $full = $t->testdir . '/full';
        # Takes each port that is free or becomes it, for each of the servers.
        my $hog = Test::Upsync::Process->spawn(output => $full, command => [ @inside, $^X, '-e', <<'EOF' ]);
use strict; use warnings; use Errno qw(EADDRNOTAVAIL); use Socket; use Time::HiRes qw(sleep);
my (@held, %full);
$| = 1;
for (;;) {
    for my $address (@ARGV ? @ARGV : ('127.0.0.1', '127.0.0.2')) {
        for (;;) {
            socket my $socket, PF_INET, SOCK_STREAM, 0 or die "socket: $!\n";
            setsockopt $socket, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0;
            if (connect $socket, pack_sockaddr_in 8080, inet_aton $address) {
                push @held, $socket;
                next;
            }
            $! == EADDRNOTAVAIL or die "connect: $!\n";
            print "full $address\n" unless $full{$address}++;
            last;
        }
    }
    sleep 0.002;
}
EOF
        wait_until { 2 == (() = $t->read_file('full') =~ /^full /mg) } 10, 'the ports are used up' or diag $t->read_file('full');
        # Those of checks that were under way.
        sleep 0.3;
        my $mark = $nginx->log_mark;
        my $since = time;
        sleep $seconds;
        my $meanwhile = $asked->($since, $here[0]) + $asked->($since, $here[1]);
        cmp_ok($meanwhile, '<', 2 * $seconds / 0.2 / 2, "checks have no port: $meanwhile checks meanwhile");
        # Each server is a place of its own to which there is no port.
        my @lines = lines($nginx, $mark);
        cmp_ok(scalar @lines, '<=', @here * $workers, 'a line at most for each worker and server: ' . @lines) or diag join "\n", @lines;
        ok($hog->alive, 'until now') or diag $t->read_file('full');
        $hog->stop('KILL');
        no_verdict($nginx, $begin, port => $socket, asked => $all);
    };

    subtest 'no route' => sub {
        my $mark = $nginx->log_mark;
        my %is = verdicts($socket);
        is($is{$nowhere}, 'up', 'a server to which there has never been one is not down');
        sleep 1;
        my @told = lines($nginx, $mark);
        is(join("\n", @told), '', 'nor told again and again beside others that are well');
        $mark = $nginx->log_mark;
        is(system(@inside, 'ip', 'address', 'del', '10.9.9.9/32', 'dev', 'lo'), 0, 'the route to another is gone');
        my $since = time;
        sleep $seconds;
        is($asked->($since + 0.2, $away), 0, 'it is not asked');
        my @lines = lines($nginx, $mark);
        cmp_ok(scalar @lines, '<=', $workers, 'a line at most for each worker: ' . @lines) or diag join "\n", @lines;
        is(system(@inside, 'ip', 'address', 'add', '10.9.9.9/32', 'dev', 'lo'), 0, 'it is back');
        no_verdict($nginx, $mark, port => $socket, asked => $all);
    };
    $nginx->stop;
};

$t->done;

# Verdicts are still given: a server that dies is down by one check.
sub found_down {
    my $nginx = shift;
    my $mark = $nginx->log_mark;
    $apps[0]->kill;
    my $line = 'upstream "app": server ' . $apps[0]->address . ' is down: ';
    wait_until { $nginx->log($mark) =~ /\Q$line\E/ } 15, 'a server that dies is down';
    $apps[0]->run;
    wait_until { $nginx->log($mark) =~ /\Q${\$apps[0]->address}\E is up$/m } 15, 'and up again';
    return;
}

sub limit {
    my ($pid, $number) = @_;
    return system("prlimit --pid=$pid --nofile=$number: 2>/dev/null") == 0;
}
