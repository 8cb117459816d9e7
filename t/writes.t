#!/usr/bin/perl

# After a 200 every worker serves what was written; and of several who write nobody loses anything.

use strict;
use warnings;

use POSIX ();
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $times = $ENV{TEST_TIMES} // 2000;
my $writers = 4;
my $each = 50;

my $t = Test::Upsync->new;
my @servers = $t->backends(2)->addresses;
my $run_time = 'app.example';

sub configure {
    my $lines = shift;
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    add_header X-Pid \$pid always;
    dyups_upstream any;
    $lines
    upstream fixed {
        server 127.0.0.1:1 down;
        keepalive 4;
    }
    upstream any {
        dyups \$host;
        server 127.0.0.1:1 down;
        keepalive 4;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location /static { proxy_pass http://fixed; }
        location /variable { proxy_pass http://\$host; }
        location /dyups { proxy_pass http://any; }
        location /api { dyups_interface; }
    }
}
EOF
}

configure('');
$t->run;
subtest "read your writes, $times times" => sub { read_your_writes($times) };
subtest 'several writers' => \&concurrent_writers;
$t->stop;

configure('dyups_state_path state;');
$t->run;
my $saved = int($times / 4) || 1;
subtest "read your writes with dyups_state_path, $saved times" => sub { read_your_writes($saved) };
subtest 'several writers with dyups_state_path' => \&concurrent_writers;

$t->done;

# The name of the upstream that each way of asking has, and the way.
sub read_your_writes {
    my $times = shift;
    my @ways = ([ 'fixed', '/static' ], [ $run_time, '/variable' ], [ $run_time, '/dyups' ]);
    my (%turn, %answered, @times, @refused, @stale);
    my $requests = 0;
    for my $number (1 .. $times) {
        my ($name, $uri) = @{ $ways[ $number % @ways ] };
        my $server = $servers[ $turn{$name}++ % 2 ];
        # Now and then the whole upstream goes before it is made again.
        if ($number % 10 == 0) {
            my $answer = api('DELETE', "/upstream/$name");
            push @refused, "$answer->{status} $answer->{body}" if $turn{$name} > 1 && $answer->{body} ne 'success';
            for my $read (from_each_worker($uri)) {
                $requests++;
                push @stale, "$number: deleted, $read->{status} $read->{body}" if $read->{status} != 502;
            }
        }
        my $start = time;
        my $answer = post("/upstream/$name", "server $server;");
        push @times, 1000 * (time - $start);
        $answered{ $answer->{headers}{'x-pid'} // 'none' }++;
        push @refused, "$answer->{status} $answer->{body}" if $answer->{body} ne 'success';
        for my $read (from_each_worker($uri)) {
            $requests++;
            push @stale, "$number: $read->{status} $read->{body}" if $read->{body} ne "hello world by $server\n";
        }
    }
    is(join("\n", @refused), '', 'each write was answered 200');
    is(join("\n", @stale), '', 'no stale answer') or diag scalar @stale;
    cmp_ok($requests, '>=', 2 * $times, "of $requests over new connections, to each worker after each write");
    is(join(' ', sort { $a <=> $b } keys %answered), join(' ', sort { $a <=> $b } $t->workers), 'both workers were written to')
        if $times > 50;
    @times = sort { $a <=> $b } @times;
    diag sprintf '%d POSTs: median %.2f ms, p99 %.2f ms', scalar @times, $times[ @times / 2 ], $times[ @times * 0.99 ];
}

# Each adds addresses of its own, one at a time, then takes them away.
sub concurrent_writers {
    my $first = $servers[0];
    my @all = map { my $writer = $_; map { "10.0.$writer.$_:80" } 1 .. $each } 1 .. $writers;
    is(post('/upstream/many', "server $first;")->{status}, 200, 'one server');

    is_deeply(together(sub { post('/upstream/many/server', "server 10.0.$_[0].$_[1]:80 down;") }),
        { '200 success' => $writers * $each }, "$writers who write at the same time are all answered 200");
    my @listed = listed('many');
    is(scalar @listed, 1 + @all, 'all servers are there');
    is_deeply([ sort @listed ], [ sort $first, @all ], 'each of them once');
    is($listed[0], $first, 'the one that was there keeps its place');

    is_deeply(together(sub { api('DELETE', "/upstream/many/server/10.0.$_[0].$_[1]:80") }),
        { '200 success' => $writers * $each }, 'so are those who remove them');
    is_deeply([ listed('many') ], [$first], 'and none comes back');

    # Some replace the whole, others change a part: what is there in the end is somebody's.
    my %body = map { $_ => join '', map { "server $_;" } @all[ $_ * $each - $each .. $_ * $each - 1 ] } 1 .. $writers;
    is_deeply(together(sub { post('/upstream/many', $body{ $_[0] }) }),
        { '200 success' => $writers * $each }, 'and those who replace the list');
    my $last = join ' ', listed('many');
    ok(scalar(grep { $last eq join ' ', @all[ $_ * $each - $each .. $_ * $each - 1 ] } 1 .. $writers),
        'which is one of theirs, whole') or diag $last;
}

# Runs a sub as often as there are addresses in each of several processes at the same time, and
# counts the answers.
sub together {
    my $code = shift;
    my @pipes = map {
        my $writer = $_;
        my $pid = open(my $pipe, '-|') // die "fork: $!\n";
        if ($pid == 0) {
            my $said = '';
            for my $number (1 .. $each) {
                my $answer = eval { $code->($writer, $number) } // { status => 'died', body => $@ };
                $said .= "$answer->{status} " . ($answer->{error} // $answer->{body}) . "\n";
            }
            syswrite STDOUT, $said;
            POSIX::_exit(0);
        }
        $pipe;
    } 1 .. $writers;
    my %answers;
    for my $pipe (@pipes) {
        chomp, $answers{$_}++ while <$pipe>;
        close $pipe;
    }
    return \%answers;
}

sub api {
    my ($method, $path, %opt) = @_;
    return http($method, $t->port(0), "/api$path", timeout => 20, %opt);
}

sub post { return api('POST', $_[0], body => $_[1]) }

sub listed { return api('GET', "/upstream/$_[0]")->{body} =~ /^server (\S+)$/mg }

# Answers over new connections, until both workers have answered.
sub from_each_worker {
    my $uri = shift;
    my (@answers, %pids);
    for (1 .. 100) {
        my $answer = http_get($t->port(0), $uri, host => $run_time);
        push @answers, $answer;
        $pids{ $answer->{headers}{'x-pid'} // 'none' } = 1;
        return @answers if keys %pids == 2;
    }
    die "not both workers answered\n";
}
