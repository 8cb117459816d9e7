#!/usr/bin/perl

# What posted lists must not cost: connections that are not kept, running requests when a list goes,
# memory when thousands come and go, changes when a worker dies or nginx is reloaded.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $cycles = $ENV{TEST_CYCLES} // 1000;
my $times = $ENV{TEST_TIMES} // 20;
my $keepalive = 16;
my $slow_requests = 100;

my $t = Test::Upsync->new;
my $backends = $t->backends(2, http => 'keepalive_timeout 1d;');
my @servers = $backends->addresses;
my $slow = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 512,
    ReuseAddr => 1) or die "listen: $!";
my $slow_address = '127.0.0.1:' . $slow->sockport;

sub configure {
    my $lines = shift;
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events { worker_connections 2048; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000000;
    keepalive_time 1d;
    add_header X-Pid \$pid always;
    upsync_zone 4m;
    dyups_upstream any;
    $lines
    upstream any {
        dyups \$host;
        server 127.0.0.1:1 down;
        keepalive $keepalive;
        keepalive_requests 1000000000;
        keepalive_time 1d;
        keepalive_timeout 1d;
    }
    upstream fixed {
        server 127.0.0.1:1 down;
        keepalive $keepalive;
        keepalive_requests 1000000000;
        keepalive_time 1d;
        keepalive_timeout 1d;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        # What a load leaves behind when it ends closes no connection to a server.
        proxy_ignore_client_abort on;
        location /dyups { proxy_pass http://any; }
        location /variable { proxy_pass http://\$host; }
        location /static { proxy_pass http://fixed; }
        location / { dyups_interface; }
    }
}
EOF
}

configure('');
$t->run;

# No more requests at a time than a worker keeps connections, to whichever servers: so none has to
# be closed.
subtest 'connections to servers are kept' => sub {
    my $asked = 10_000;
    for ([ 'kept.example', '/dyups', '/variable' ], [ 'fixed', '/static' ]) {
        my ($name, @ways) = @$_;
        post("/upstream/$name", "server $servers[0]; server $servers[1];");
        for my $way (@ways) {
            my ($requests, $failed) = (0, 0);
            while ($requests < $asked && !$failed) {
                my $result = load("$way/kept", $name, $keepalive / 2, seconds => 1)->();
                $requests += $result->{requests};
                $failed += $result->{non_2xx} + $result->{socket_errors};
            }
            is($failed, 0, "$way: of $requests requests none failed");
            at_most_kept($way, 'kept');
        }

        my @pids;
        my @loads = map { load("$_/changed", $name, $keepalive / 2 / @ways, seconds => 600, pid => \$pids[@pids]) } @ways;
        my @refused = grep { $_->{body} ne 'success' } map { post("/upstream/$name", changed($_)) } 1 .. 1000;
        kill 'INT', @pids;
        is(scalar @refused, 0, "$name: 1,000 changes") or diag $refused[0]{raw};
        for my $way (@ways) {
            my $result = shift(@loads)->();
            cmp_ok($result->{requests}, '>', 100, "$way: $result->{requests} requests meanwhile");
            is($result->{non_2xx} + $result->{socket_errors}, 0, 'none failed') or diag $result->{output};
            at_most_kept($way, 'changed');
        }
    }
    api('DELETE', '/upstream/kept.example');
};

subtest "a list that goes while $slow_requests requests run" => sub {
    my $name = 'slow.example';
    my $long = join '', "server $slow_address;", map { "server 10.0.0.$_:80 down;" } 1 .. 200;
    my $make_others = sub { post("/upstream/other$_.example", join '', map { "server 10.1.1.$_:80;" } 1 .. 20) for 1 .. 20 };
    my $delete_others = sub { api('DELETE', "/upstream/other$_.example") for 1 .. 20 };
    # Slots for servers and the entries of names stay for the next who wants some.
    post("/upstream/$name", $long);
    $make_others->();
    post('/upstream/failing.example', 'server 127.0.0.1:1; server 127.0.0.1:2;');
    api('DELETE', '/upstream/failing.example');
    $delete_others->();
    api('DELETE', "/upstream/$name");
    my $before = free_pages();

    post("/upstream/$name", $long);
    cmp_ok(free_pages(), '<', $before, 'a list takes memory');
    my @running = map { begin($name, $_ % 2 ? '/dyups' : '/variable') } 1 .. $slow_requests;
    # These find the other server failed when this one fails too.
    my $failing = 'failing.example';
    post("/upstream/$failing", "server $slow_address; server 127.0.0.1:1 max_fails=1 fail_timeout=1h;");
    my @failing = map { begin($failing, $_ % 2 ? '/dyups' : '/variable') } 1 .. 10;
    is(scalar(keys %{ { map { $_->{pid} => 1 } @running } }), 2, 'requests run in both workers');
    # Some have half of their answer.
    half($_) for @running[ 0 .. $slow_requests / 2 - 1 ];

    is(api('DELETE', "/upstream/$_")->{body}, 'success', "$_ deleted") for $failing, $name;
    is(free_pages(), $before, 'the memory is given back');
    # What was freed is used by somebody else.
    $make_others->();

    for my $way (qw(dyups variable)) {
        my @statuses = map { $_->{status} } from_each_worker("/$way", $name);
        is(scalar(grep { $_ != 502 } @statuses), 0, "/$way: new requests find nothing") or diag "@statuses";
    }
    post("/upstream/$name", "server $servers[0];");
    my @new = map { $_->{body} } from_each_worker('/dyups', $name);
    is(scalar(grep { $_ ne "hello world by $servers[0]\n" } @new), 0, 'until it is made again') or diag "@new";
    api('DELETE', "/upstream/$name");

    my $mark = $t->log_mark;
    close delete $_->{server} for @failing;
    my @failed = map { $_->{client}->receive('GET', 10)->{status} } @failing;
    is(scalar(grep { $_ != 502 } @failed), 0, 'a server that fails now: no other is left') or diag "@failed";
    my %said = map { $_ => 1 } $t->log($mark) =~ m{no live upstreams .*upstream: "http://([^/]*)/}g;
    is_deeply([ sort keys %said ], [ 'any', $failing ], 'and the log knows where they were');
    half($_) for grep { !$_->{half} } @running;
    half($_) for @running;
    my %bodies;
    $bodies{ $_->{client}->receive('GET', 10)->{body} }++ for @running;
    is_deeply(\%bodies, { 'first,second' => scalar @running }, 'all others end as if nothing had been');
    $delete_others->();
    is(free_pages(), $before, 'all memory is given back');
};

subtest 'names that come and go' => sub {
    my @connections = connections_to_all();
    is(@connections, 2, 'a connection to each worker');
    my @wrong;
    my $cycle = sub {
        my ($name, $number) = @_;
        my $server = $servers[ $number % 2 ];
        # One of the two workers makes it, and one deletes it.
        my $made = api('POST', "/upstream/$name", connection => $connections[ $number / 2 % 2 ], body => "server $server;");
        my @served = map { ask($_, $number % 3 ? 'dyups' : 'variable', $name) } @connections;
        my $deleted = api('DELETE', "/upstream/$name", connection => $connections[ $number % 2 ]);
        my @gone = map { ask($_, $number % 5 ? 'dyups' : 'variable', $name) } @connections;
        push @wrong, join ', ', $name, map { "$_->{status} $_->{body}" } $made, $deleted, @served, @gone
            if grep({ $_->{body} ne 'success' } $made, $deleted)
                || grep({ $_->{body} ne "hello world by $server\n" } @served)
                || grep({ $_->{status} != 502 } @gone);
    };
    my %kinds = (
        'distinct names' => sub { sprintf '%s%d.example', 'n' x (1 + $_[0] % 200), $_[0] },
        'one name' => sub { 'again.example' },
    );
    for my $kind (sort keys %kinds) {
        # What is used at first depends on chance; so much is gone through before it is measured.
        my $warm_up = $cycles < 4000 ? int($cycles / 2) : 2000;
        $cycle->($kinds{$kind}->($_), $_) for 1 .. $warm_up;
        my %before = measured();
        $cycle->($kinds{$kind}->($_), $_) for $warm_up + 1 .. $warm_up + $cycles;
        my %after = measured();
        is(join("\n", splice @wrong, 0, 5), '', "$kind: $cycles times made, served, deleted, and no longer served");
        note "$kind: $_: $before{$_} -> $after{$_}" for sort keys %after;
        is($after{'pages used'}, $before{'pages used'}, 'the same pages of the zone are used');
        for (grep { /RSS/ } sort keys %after) {
            # The allocator takes its memory in steps; a leak of 100 bytes a cycle would be far more.
            cmp_ok($after{$_} - $before{$_}, '<', 256 + $cycles / 20, "$_: KiB more");
        }
        is($after{$_}, $before{$_}, "$_: as many") for grep { /files|threads/ } sort keys %after;
    }
};

subtest 'a worker killed with the lock held' => sub {
    my ($worker, $other) = $t->workers;
    my ($memory, $zone) = zone() or plan skip_all => 'no memory of nginx to write to';
    kill 'STOP', $worker;
    sysseek $memory, $zone, 0;
    syswrite($memory, pack 'Q', $worker) or die "memory of nginx: $!";
    my $connection = connection_to($other);
    $connection->send(request('held.example', $servers[0]));
    is($connection->receive('POST', 0.2)->{error}, 'timed out', 'a change waits for the lock');
    $t->nginx->expect_log(qr/process $worker exited on signal 9/, qr/zone "upsync" was locked by $worker/);
    kill 'KILL', $worker;
    is($connection->receive('POST', 10)->{body}, 'success', 'and is made when it is given up');
    wait_until { !grep({ $_ == $worker } $t->workers) && $t->workers == 2 } 10, 'another worker';
    same_everywhere('held.example', $servers[0]);
};

subtest 'killed workers' => sub { killed_workers('k1') };
subtest 'reloads' => sub { reloads('r1') };
$t->stop;

configure('dyups_state_path state;');
$t->run;
subtest 'killed workers, with dyups_state_path' => sub { killed_workers('k2') };
subtest 'reloads, with dyups_state_path' => sub { reloads('r2') };

$t->done;

sub killed_workers {
    my $prefix = shift;
    my @names = map { "$prefix-$_.example" } 1 .. 3;
    # Entries and slots that are in use at a time at most: they stay.
    for my $number (4, 9) {
        post("/upstream/$_", body_of(list_of($number))) for @names;
    }
    api('DELETE', "/upstream/$_") for @names;
    my ($before, $mark) = (free_pages(), $t->log_mark);

    my @writers = map { writer($_) } @names;
    # nginx says so when it gives up the lock of one that had it.
    $t->nginx->expect_log(qr/zone "upsync" was locked by/);
    my $replaced = 0;
    for (1 .. $times) {
        my @workers = $t->workers;
        my $said = said(@writers);
        # Every other time one that is at it just now.
        my $worker = $_ % 2 && seen_with_lock() || $workers[ rand @workers ];
        kill 'KILL', $worker;
        $t->nginx->expect_log(qr/process $worker exited on signal 9/);
        $replaced++ if wait_until { my @now = $t->workers; @now == 2 && !grep { $_ == $worker } @now } 10;
        # Each goes on with the workers that are there now.
        wait_until { !grep { $_->{answered} < $said->{ $_->{name} } + 2 } read_from(@writers) } 10
            or diag 'no change any more after a kill';
    }
    is($replaced, $times, "$times killed workers were replaced");
    checked(qr/^unanswered over a \w+ connection, (?:not )?made$/, @writers);
    my $locked = () = $t->log($mark) =~ /was locked by/g;
    note "$locked of them had the lock";
    api('DELETE', "/upstream/$_") for @names;
    is(free_pages(), $before, 'what they were at has left nothing in the zone');
}

sub reloads {
    my $prefix = shift;
    my @writers = map { writer("$prefix-$_.example") } 1 .. 3;
    my $reloaded = 0;
    for (1 .. ($times + 1) / 2) {
        my $said = said(@writers);
        $reloaded++ if $t->reload;
        wait_until { !grep { $_->{answered} < $said->{ $_->{name} } + 2 } read_from(@writers) } 10
            or diag 'no change any more after a reload';
    }
    is($reloaded, int(($times + 1) / 2), "$reloaded reloads");
    # A worker that is told to exit closes connections that wait for a next request, and no others.
    checked(qr/^unanswered over a kept connection, not made$/, @writers);
    wait_until { !$t->old_workers } 10, 'no old worker is left';
}

# A process that posts to its own upstream, one list after another, and says what came of each.
sub writer {
    my $name = shift;
    pipe my $read, my $write or die "pipe: $!\n";
    my $parent = $$;
    my $pid = fork() // die "fork: $!\n";
    if ($pid == 0) {
        $SIG{TERM} = sub { POSIX::_exit(0) };
        close $read;
        eval { post_lists($name, sub { syswrite $write, "$_[0]\n"; getppid == $parent }) };
        syswrite $write, "died: $@";
        POSIX::_exit(1);
    }
    close $write;
    return { name => $name, pid => $pid, pipe => $read, answered => 0, said => {}, last => '', buffer => '' };
}

# For want of an answer it looks which list is there.
sub post_lists {
    my ($name, $say) = @_;
    my ($last, $connection) = ('');
    for (my $number = 1;; $number++) {
        my $list = list_of($number);
        # Over a connection that is kept, which a reload closes, and over new ones.
        undef $connection if $number % 3 == 0;
        my $kind = $connection ? 'kept' : 'new';
        $connection ||= http_connect($t->port(0));
        $connection->send(request($name, $list));
        my $answer = $connection->receive('POST', 20);
        my $said = 200;
        if ($answer->{error} && $answer->{raw} eq '' && !length $connection->{buffer}) {
            my $now = listed($name);
            my $made = $now eq $list ? 'made' : $now eq $last ? 'not made' : 'lost, which leaves ' . substr $now, 0, 100;
            $said = "unanswered over a $kind connection, $made";
            $last = $now;
            undef $connection;
        } elsif ($answer->{status} == 200) {
            $last = $list;
        } else {
            my $body = $answer->{body} =~ s/\n.*//sr;
            $said = join ' ', "status $answer->{status}", $answer->{error} // '', $body;
            undef $connection;
        }
        $say->($said) or return;
    }
}

# All other servers than those of the list before. They are so many that some workers are killed
# just when they put them in their place.
sub list_of {
    my $number = shift;
    my $port = 1 + $number % 60000;
    return join ' ', map { sprintf '10.0.%d.%d:%d', $_ / 250, $_ % 250, $port } 1 .. 400 * (1 + $number % 5);
}

sub body_of { return join '', map { "server $_;" } split ' ', $_[0] }

sub request {
    my ($name, $list) = @_;
    my $body = body_of($list);
    return "POST /upstream/$name HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
}

# The servers of an upstream, asked until there is an answer.
sub listed {
    my $name = shift;
    for (1 .. 1000) {
        my $answer = http_get($t->port(0), "/upstream/$name");
        return join ' ', $answer->{body} =~ /^server (\S+)$/mg if $answer->{status} == 200;
        return '' if $answer->{status} =~ /^(?:204|404)$/;
        sleep 0.01;
    }
    return 'no answer';
}

# What they have said since the last time.
sub read_from {
    my @writers = @_;
    for my $writer (@writers) {
        while (IO::Select->new($writer->{pipe})->can_read(0)) {
            sysread($writer->{pipe}, $writer->{buffer}, 65536, length $writer->{buffer}) or last;
        }
        while ($writer->{buffer} =~ s/^(.*)\n//) {
            my $said = $1;
            $said eq '200' ? $writer->{answered}++ : $writer->{said}{$said}++;
            $writer->{last} = $said;
        }
    }
    return @writers;
}

sub said { return { map { $_->{name} => $_->{answered} } read_from(@_) } }

# Lets each end with a change that was answered, and looks at what is there. For want of an answer
# they may have said only what matches.
sub checked {
    my ($may_say, @writers) = @_;
    wait_until { !grep { $_->{last} ne '200' } read_from(@writers) } 10, 'the last changes were answered';
    kill 'TERM', map { $_->{pid} } @writers;
    waitpid $_->{pid}, 0 for @writers;
    my (%unanswered, @failed, $answered);
    for my $writer (read_from(@writers)) {
        $answered += $writer->{answered};
        for my $said (sort keys %{ $writer->{said} }) {
            my $number = $writer->{said}{$said};
            $said =~ $may_say ? $unanswered{$said} += $number : push @failed, "$writer->{name}: $number times $said";
        }
    }
    diag join ', ', "$answered changes answered 200", map { "$unanswered{$_} $_" } sort keys %unanswered;
    is(join("\n", @failed), '', 'no change was lost, none was refused');
    # One more of each: what was under way when they ended is not known.
    for my $writer (@writers) {
        my $list = list_of(7);
        is(post("/upstream/$writer->{name}", body_of($list))->{status}, 200, 'one more');
        same_everywhere($writer->{name}, $list);
    }
}

sub same_everywhere {
    my ($name, $list) = @_;
    my (%pids, @other);
    for (1 .. 100) {
        my $answer = http_get($t->port(0), "/upstream/$name");
        $pids{ $answer->{headers}{'x-pid'} // 'none' } = 1;
        push @other, $answer->{body} if $list ne join ' ', $answer->{body} =~ /^server (\S+)$/mg;
        last if keys %pids == 2;
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is("@other", '', "$name: the same list in both workers") && is(keys %pids, 2, 'of which each was asked');
}

sub api {
    my ($method, $path, %opt) = @_;
    return http($method, $t->port(0), $path, timeout => 20, %opt);
}

sub post { return api('POST', $_[0], body => $_[1]) }

sub ask {
    my ($connection, $way, $name) = @_;
    return http_get(0, "/$way", host => $name, connection => $connection);
}

sub load {
    my ($uri, $host, $connections, %opt) = @_;
    return wrk('http://127.0.0.1:' . $t->port(0) . $uri, connections => $connections,
        headers => { Host => $host }, background => 1, %opt);
}

# The first server stays; the other is another, or changes, or comes and goes.
sub changed {
    my $number = shift;
    my $weight = 1 + $number % 3;
    my $other = (
        "server $servers[1];", "server $servers[1] weight=2;", '', "server 127.0.0.1:$number down;",
    )[ $number % 4 ];
    return "server $servers[0] weight=$weight; $other";
}

# The connections that requests to a URI came over, of all servers.
sub at_most_kept {
    my ($way, $what) = @_;
    my (%connections, $requests);
    open my $log, '<', "$backends->{dir}/access.log" or die "access.log: $!";
    while (my $line = <$log>) {
        my (undef, $backend, undef, undef, $uri, $connection) = split ' ', $line;
        next if $uri ne "$way/$what";
        $requests++;
        $connections{"$backend $connection"} = 1;
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return cmp_ok(scalar keys %connections, '<=', 2 * $keepalive,
        "$way: " . keys(%connections) . " connections for $requests requests");
}

# A request that a server has and has not answered, and the worker it is with.
sub begin {
    my ($name, $uri) = @_;
    my $client = http_connect($t->port(0));
    my $pid = http_get(0, '/list', connection => $client)->{headers}{'x-pid'};
    $client->send("GET $uri HTTP/1.1\r\nHost: $name\r\n\r\n");
    IO::Select->new($slow)->can_read(5) or die "no connection to the slow server\n";
    my $server = $slow->accept;
    my $head = '';
    while ($head !~ /\r\n\r\n/) {
        IO::Select->new($server)->can_read(5) && sysread $server, $head, 4096, length $head or die "no request\n";
    }
    return { client => $client, server => $server, pid => $pid };
}

# The first half of an answer, then the second.
sub half {
    my $running = shift;
    syswrite $running->{server}, $running->{half}++ ? 'second' : "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nfirst,";
    return;
}

# Answers over new connections, until both workers have answered.
sub from_each_worker {
    my ($uri, $host) = @_;
    my (@answers, %pids);
    for (1 .. 100) {
        my $answer = http_get($t->port(0), $uri, host => $host);
        push @answers, $answer;
        $pids{ $answer->{headers}{'x-pid'} // 'none' } = 1;
        return @answers if keys %pids == 2;
    }
    die "not both workers answered\n";
}

sub connection_to {
    my $pid = shift;
    for (1 .. 1000) {
        my $connection = http_connect($t->port(0));
        my $answer = http_get(0, '/list', connection => $connection, timeout => 0.5);
        return $connection if ($answer->{headers}{'x-pid'} // 0) == $pid;
    }
    die "worker $pid does not answer\n";
}

sub connections_to_all { return map { connection_to($_) } $t->workers }

sub free_pages { return (reverse $t->log =~ /(\d+) of \d+ pages free/g)[0] }

# A worker that has the lock at this moment.
sub seen_with_lock {
    my ($memory, $zone) = zone() or return;
    my %workers = map { $_ => 1 } $t->workers;
    my $deadline = time + 1;
    while (time < $deadline) {
        sysseek $memory, $zone, 0;
        sysread $memory, my $word, 8;
        my $pid = unpack 'Q', $word;
        return $pid if $workers{$pid};
    }
    return;
}

# The zone's memory: the first word is its mutex, with the process that holds it.
sub zone {
    my $master = $t->nginx->pid;
    open my $file, '<', "/proc/$master/maps" or return;
    no warnings 'portable';
    my @maps = map { [ map { hex } /^([0-9a-f]+)-([0-9a-f]+) rw-s/ ] } <$file>;
    my ($zone) = map { $_->[0] } grep { @$_ && $_->[1] - $_->[0] == 4 << 20 } @maps;
    open my $memory, '+<:raw', "/proc/$master/mem" or return;
    return $zone ? ($memory, $zone) : ();
}

sub measured {
    my ($free, $all) = (reverse $t->log =~ /(\d+) of (\d+) pages free/g)[ 1, 0 ];
    my %measured = ('pages used' => $all - $free);
    for my $pid ($t->workers) {
        # The thread of the last change may not have ended yet.
        wait_until { status($pid) =~ /Threads:\s+1\n/ } 5;
        ($measured{"RSS of $pid"}) = status($pid) =~ /VmRSS:\s+(\d+)/;
        ($measured{"threads of $pid"}) = status($pid) =~ /Threads:\s+(\d+)/;
        $measured{"files of $pid"} = () = glob "/proc/$pid/fd/*";
    }
    return %measured;
}

sub status {
    my $pid = shift;
    open my $status, '<', "/proc/$pid/status" or die "status: $!";
    local $/;
    return <$status>;
}
