#!/usr/bin/perl

# Faults that checks had: places and connections that are never given back, answers to what nobody asks
# any more, workers that cannot exit or have no time for clients, and failures that nobody is told of.
# One subtest each.

use strict;
use warnings;

use List::Util qw(max min sum0);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Checks;
use Test::Upsync::Probes qw(cpu);

# nginx in a network of its own, from which there is no way.
package Test::Upsync::Nowhere;

use parent -norequire, 'Test::Upsync::Nginx';

sub command { my $self = shift; return ('unshare', '--net', $self->SUPER::command) }

package main;

my $t = Test::Upsync->new;
# All of 127.1.0.0/16, keeping connections, with a log of who was asked when; all that never answer.
my $probes = Test::Upsync::Probes->new($t);
my $hanging = hanging($t);
# Nobody listens there as long as the test runs.
my $dead = '127.0.0.1:' . $t->free_port;

my $has_openssl = `openssl version 2>/dev/null`;
my $keep_alive = 'check_http_send "GET / HTTP/1.1\r\nHost: a\r\n\r\n"; check_keepalive_requests 1000000;';

sub good { return map { $probes->address($_) } @_ }

sub hang { return map { sprintf '127.2.%d.%d:%d', $_ >> 8, $_ & 255, $hanging->port } @_ }

sub servers { return join ' ', map { "server $_;" } @_ }

# An nginx of two workers; what it has besides these is in %opt.
sub checking {
    my ($http, %opt) = @_;
    my ($port, $api) = ($t->free_port, $t->free_port);
    my $workers = $opt{workers} // 2;
    my $nginx = $t->another_nginx(<<"EOF");
${\($opt{globals} // $t->globals)}
worker_processes $workers;
@{[ $opt{main} // '' ]}
events { worker_connections @{[ $opt{connections} // 1024 ]}; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000;
    client_body_buffer_size 1m;
    upsync_zone @{[ $opt{zone} // '4m' ]};
    $http
    upstream posted { server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:$port @{[ $opt{listen} // '' ]};
        location = /check_status { check_status csv; }
        location = /worker { return 200 "\$pid"; }
        location / { proxy_pass http://\$host; }
    }
    server {
        listen 127.0.0.1:$api;
        location / { dyups_interface; }
    }
}
EOF
    @$nginx{qw(port api count)} = ($port, $api, $workers);
    return $nginx if $opt{start};
    $nginx->run;
    wait_until { $nginx->workers == $workers } 10 or die "no $workers workers\n";
    return $nginx;
}

sub post {
    my ($nginx, $name, $body, %opt) = @_;
    my $answer = http('POST', $nginx->{api}, "/upstream/$name", body => $body, timeout => 60, %opt);
    return 1 if $answer->{status} == 200;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok(0, "$name is posted") || diag explain $answer;
}

sub remove { my ($nginx, $name) = @_; return http('DELETE', $nginx->{api}, "/upstream/$name")->{status} == 200 }

sub state_of {
    my ($nginx, $name, $address) = @_;
    return checked($t, $name, port => $nginx->{port})->{$address}{status} // 'not there';
}

sub status_of { my ($nginx, $name) = @_; return http_get($nginx->{port}, '/', host => $name)->{status} }

# How many connections to a port the workers hold.
sub all_held {
    my ($nginx, $port) = @_;
    # To look takes time, which nginx may need.
    sleep 0.02;
    return sum0 values %{ connected_to($port, $nginx->processes) };
}

# The first few lines of the log that match.
sub lines {
    my ($nginx, $regex) = @_;
    my @lines = grep { $_ =~ $regex } split /\n/, $nginx->log;
    return join "\n", @lines[ 0 .. min($#lines, 4) ];
}

# Whether each of these was asked again since.
sub asked_since {
    my ($since, @servers) = @_;
    return !grep { $probes->times($_, $since) < 2 } @servers;
}

# Longer than it is from a worker's look at the lists to the next, on a busy machine.
my $look = 1;

subtest 'a server that leaves while it is checked gives its place back' => sub {
    my @good = good(1 .. 4);
    my $nginx = checking(<<"EOF");
    check_concurrency 1;
    upstream good { check interval=200 timeout=5000 type=http; @{[ servers(@good) ]} }
EOF
    my $check = 'check interval=100 timeout=60000 type=http;';
    # Some are each worker's own, and a worker with a free place takes those of others.
    my $all_taken = sub {
        my $held;
        my $is_so = wait_until {
            $held = connected_to($hanging->port, $nginx->workers);
            !grep { $_ < 1 } values %$held;
        } 20;
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        return is_deeply([ values %$held ], [ 1, 1 ], 'the only place of each worker is taken');
    };
    my $goes_on = sub {
        my $name = shift;
        my $since = time;
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        wait_until { asked_since($since, @good) } 15, $name;
    };
    my $list = sub { my $from = 16 * shift; return servers(hang($from + 1 .. $from + 16)) . " $check" };
    post($nginx, 'bad', $list->(0));
    $all_taken->();
    post($nginx, 'bad', servers($dead));
    $goes_on->('when they have left the list, others are checked');
    for my $time (1 .. 5) {
        post($nginx, 'bad', $list->($time));
        $all_taken->();
    }
    remove($nginx, 'bad');
    $goes_on->('when the lists with them were exchanged, and the last one was deleted');
    $nginx->stop;
};

subtest 'what is asked changes while a connection is kept, or a check is under way' => sub {
    my $backends = $t->backends(2, server => 'location /503 { return 503; }');
    my ($here, $there) = $backends->addresses;
    my ($port) = $there =~ /:(\d+)/;
    my $nginx = checking('');
    my $asked = sub { my ($uri, $address) = @_; return grep { $_->{uri} eq $uri && $_->{address} eq $address } $backends->requests };
    my $list = sub {
        my ($uri, $more) = @_;
        return "server $here; check interval=100 rise=1 fall=1 timeout=5000 $more;"
            . qq{check_http_send "GET $uri HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"; check_keepalive_requests 1000000;};
    };
    # A check that fails when its time is over, of which the second question knows nothing.
    my $late = (hang(1))[0];
    my $mark = $nginx->log_mark;
    my $question = 'check interval=100 rise=1 fall=1 timeout=2000 type=http default_down=false';
    post($nginx, 'late', "server $late; $question;");
    wait_until { all_held($nginx, $hanging->port) } 10, 'a check is under way';
    my ($good_port) = (good(9))[0] =~ /:(\d+)/;
    post($nginx, 'late', "server $late; $question port=$good_port;");

    post($nginx, 'kept', $list->('/a', 'type=http'));
    wait_until { $asked->('/a', $here) >= 5 } 10, 'a server is checked';
    my %connections = map { ($_->{connection} => 1) } $asked->('/a', $here);
    cmp_ok(scalar keys %connections, '<', scalar $asked->('/a', $here), 'over a connection that is kept');

    post($nginx, 'kept', $list->('/b', "type=http port=$port"));
    wait_until { $asked->('/b', $there) >= 2 } 10, 'another port: it is asked';
    is(scalar $asked->('/b', $here), 0, 'the old one is not');

    post($nginx, 'kept', $list->('/c', 'type=https'));
    wait_checked($t, 'kept', { $here => 'down' }, 10, 'https of a server without TLS fails', port => $nginx->{port});
    is(scalar(grep { $_->{uri} eq '/c' } $backends->requests), 0, 'nothing is asked without TLS');

    SKIP: {
        skip 'no openssl', 1 unless $has_openssl;
        my $files = authority($t, 'faults');
        my $tls = $t->backends(1, options => 'ssl', http => "log_format name '\$ssl_server_name \$connection';",
            server => "access_log name.log name; ssl_certificate $files->{certificate}; ssl_certificate_key $files->{key};");
        my ($tls_port) = ($tls->addresses)[0] =~ /:(\d+)/;
        my $names = sub {
            my %names;
            $names{ (split ' ')[0] }{ (split ' ')[1] }++ for split /\n/, Test::Upsync::Nginx::_slurp("$tls->{dir}/name.log");
            return \%names;
        };
        for my $name (qw(one.example two.example)) {
            post($nginx, 'kept', $list->("/$name", "type=https port=$tls_port") . " check_ssl_name $name;");
            wait_until { grep { $_->{uri} eq "/$name" } $tls->requests } 10, "over TLS: $name is asked";
        }
        my %uris = map { ("$_->{connection} $_->{uri}" => $_->{connection}) } $tls->requests;
        my %of;
        push @{ $of{ $uris{$_} } }, s/.* \///r for sort keys %uris;
        my $got = $names->();
        my %mixed = map { my $name = $_; map { ($_ => 1) } grep { "@{ $of{$_} // [] }" ne $name } keys %{ $got->{$name} } } keys %$got;
        is_deeply([ sort keys %mixed ], [], 'each connection is for one name');
    }

    # The old check ends after 2 s.
    wait_until { !all_held($nginx, $hanging->port) } 20, 'the check of the first question has ended';
    my $since = time;
    # It is not counted, and what it would have failed is not told.
    wait_until { $probes->times(($late =~ s/:.*//r) . ":$good_port", $since) >= 2 } 10, 'the second question is asked';
    is_deeply([ flips($nginx, 'late', $mark) ], [], 'and nothing came of the first one');
    is(state_of($nginx, 'late', $late), 'up', 'the server is up');
    $nginx->stop;
};

# Clients whose connections wait, and others that are in the midst of a request: so many of each at each
# worker, which says who it is.
sub clients {
    my ($nginx, $idle, $busy) = @_;
    my @pids = $nginx->workers;
    my (%idle, %busy, @failed);
    for (1 .. 40 * ($idle + $busy)) {
        last unless grep { @{ $busy{$_} // [] } < $busy } @pids;
        my $client = http_connect($nginx->{port});
        my $answer = http_get(0, '/worker', connection => $client);
        if ($answer->{status} != 200) {
            push @failed, $answer->{error} // $answer->{status};
            next;
        }
        my $pid = $answer->{body};
        if (@{ $idle{$pid} // [] } < $idle) {
            push @{ $idle{$pid} }, $client;
        } elsif (@{ $busy{$pid} // [] } < $busy) {
            $client->send("GET /worker HTTP/1.1\r\nHost: a\r\n");
            push @{ $busy{$pid} }, $client;
        }
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is_deeply(\@failed, [], 'clients get in');
    is_deeply([ map { scalar @{ $busy{$_} // [] } } @pids ], [ ($busy) x @pids ], 'so many at each worker');
    return sub {
        my @answers = map { $_->send("\r\n"); $_->receive('GET', 5) } map { @$_ } values %busy;
        is(scalar(grep { $_->{status} != 200 } @answers), 0, 'clients that are at work are answered');
        my @others = map { http_get(0, '/worker', connection => $_) } map { @$_ } values %idle;
        is(scalar(grep { $_->{status} != 200 } @others), 0, 'those that wait were not sent away');
        is(lines($nginx, qr/worker_connections are not enough/), '', 'nginx does not complain');
        $_->close for map { @$_ } values %idle, values %busy;
    };
}

subtest 'kept connections leave room for clients, and for other checks' => sub {
    # More than there are connections, for each worker.
    my @good = good(1 .. 300);
    my $begin = time;
    my $nginx = checking(<<"EOF", connections => 128, listen => 'reuseport');
    check_concurrency 16;
    upstream good { check interval=1000 timeout=5000 type=http; $keep_alive @{[ servers(@good) ]} }
EOF
    my @never = @good;
    wait_until { !(@never = grep { !$probes->times($_, $begin) } @never) } 15, 'each server is checked' or diag scalar @never;
    my $kept = connected_to($probes->{port}, $nginx->workers);
    note 'kept connections: ', join ', ', values %$kept;
    is(scalar(grep { $_ < 10 } values %$kept), 0, 'some connections are kept');
    my $answers = clients($nginx, 10, 25);
    my $since = time;
    wait_until { asked_since($since, @good) } 20, 'and all servers are checked on';
    $answers->();
    $nginx->stop;
};

subtest 'checks that never end leave room for clients' => sub {
    my $nginx = checking('', connections => 128, listen => 'reuseport');
    my $answers = clients($nginx, 10, 25);
    post($nginx, 'bad', servers(hang(1 .. 300)) . ' check interval=200 timeout=60000 type=http;');
    my ($last, $at) = (0, time);
    wait_until {
        my $now = all_held($nginx, $hanging->port);
        ($last, $at) = ($now, time) if $now != $last;
        $last > 2 * 50 && time > $at + 0.5;
    } 20, 'they take what room there is';
    note "$last connections of both workers";
    $answers->();
    remove($nginx, 'bad');
    $nginx->stop;
};

subtest 'workers exit while checks are under way, and while connections are kept' => sub {
    my $number = 0;
    my $upstreams = join "\n", map {
        my $type = $_;
        my @servers = hang(map { $number * 8 + $_ } 1 .. 8);
        $number++;
        "upstream $type { check interval=200 timeout=60000 type=$type; @{[ servers(@servers) ]} }";
    } qw(http https grpcs mysql);
    my $nginx = checking(<<"EOF");
    $upstreams
    upstream kept { check interval=200 timeout=60000 type=http; $keep_alive @{[ servers(good(1 .. 8)) ]} }
EOF
    my $wait = sub {
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        wait_until { all_held($nginx, $hanging->port) >= 32 && all_held($nginx, $probes->{port}) >= 4 } 20,
            'all checks are under way, and connections are kept';
    };
    $wait->();
    my %old = map { $_ => 1 } $nginx->processes;
    my $begin = time;
    ok($nginx->reload, 'reloaded');
    wait_until { !grep { $old{$_} } $nginx->processes } 5, 'the old workers are gone';
    note sprintf '%.3f s after the signal', time - $begin;
    # Those that the old workers began are made up for when their time would have been over. These are new.
    post($nginx, 'more', servers(hang(101 .. 116)) . ' check interval=100 timeout=60000 type=https;');
    wait_until { all_held($nginx, $hanging->port) >= 16 } 20, 'new workers have checks under way';
    $begin = time;
    $nginx->stop;
    my $took = time - $begin;
    cmp_ok($took, '<', 5, sprintf 'all quit: %.3f s', $took);
    is(lines($nginx, qr/open socket|left in connection|\[alert\]/), '', 'with nothing left open');
};

# With the number of lists times the number of servers this took seconds; it takes a few milliseconds.
subtest 'many lists: clients do not wait for the first look of new workers' => sub {
    my ($names, $servers) = (1500, 50);
    my $nginx = checking('', zone => '256m');
    my $connection = http_connect($nginx->{api});
    my $begin = time;
    for my $name (1 .. $names) {
        my $list = join ' ', map { sprintf 'server 127.%d.%d.%d:1;', 3 + ($name >> 8), $name & 255, $_ } 1 .. $servers;
        post($nginx, "many$name", "$list check interval=3600000 type=tcp;", connection => $connection) or last;
    }
    note sprintf '%d lists of %d servers posted in %.1f s', $names, $servers, time - $begin;
    my @worst;
    # The machine may have other things to do, once.
    for my $time (1 .. 2) {
        my %old = map { $_ => 1 } $nginx->processes;
        $nginx->signal('HUP');
        my $worst = 0;
        # Until some time after the old ones are gone.
        for (my $end = time + 30; time < $end;) {
            my $begin = time;
            http_get($nginx->{port}, '/worker', timeout => 30);
            $worst = max($worst, time - $begin);
            $end = min($end, time + 0.4) if %old && !grep { $old{$_} } $nginx->processes and !(%old = ());
            sleep 0.005;
        }
        push @worst, $worst;
    }
    note sprintf 'longest time for an answer while nginx reloads: %s ms', join ', ', map { sprintf '%.0f', 1000 * $_ } @worst;
    cmp_ok(min(@worst), '<', 0.5, 'an answer comes soon');
    my $rows = checked($t, "many$names", port => $nginx->{port}, uri => "/check_status?upstream=many$names&");
    is(scalar keys %$rows, $servers, 'the lists are there, with their checks');
    $nginx->stop;
};

subtest 'a list without checks forgets verdicts' => sub {
    my $nginx = checking('');
    my ($good) = good(1);
    my ($dead_port) = $dead =~ /:(\d+)/;
    # A server that the first question finds bad, and one that it finds well.
    my %list = (bad => "check interval=100 rise=1 fall=1 type=http default_down=false port=$dead_port;",
        well => 'check interval=100 rise=1 fall=1 type=http;');
    # The second one is not answered yet.
    my %then = (bad => 'default_down=false', well => 'default_down=true');
    my %state = (bad => [ 'down', 'up' ], well => [ 'up', 'down' ]);
    post($nginx, $_, "server $good; $list{$_}") for keys %list;
    wait_checked($t, $_, { $good => $state{$_}[0] }, 10, "$_: a verdict", port => $nginx->{port}) for sort keys %list;
    post($nginx, $_, "server $good;") for keys %list;
    is(status_of($nginx, $_), 200, "$_: without checks it takes requests") for sort keys %list;
    sleep $look;
    post($nginx, $_, "server $good; check interval=3600000 rise=2 fall=2 type=tcp $then{$_};") for keys %list;
    for (sort keys %list) {
        is(state_of($nginx, $_, $good), $state{$_}[1], "$_: another question, no answer yet");
        is(status_of($nginx, $_), $state{$_}[1] eq 'up' ? 200 : 502, "$_: so say requests");
    }
    $nginx->stop;
};

# A worker that stands still learns of all at once: names that it has are gone, others are there.
subtest 'names come and go between two looks of a worker' => sub {
    my $nginx = checking('');
    my @workers = sort $nginx->workers;
    my $list = 'check interval=60000; ' . servers(good(1));
    for my $round (1 .. 5) {
        my ($gone, $new) = map { my $name = $_; [ map { "$name$round-$_.example" } 1 .. 30 ] } qw(gone new);
        post($nginx, $_, $list) for @$gone;
        # Both know them.
        my %knows;
        wait_until { my $answer = http_get($nginx->{port}, '/worker', host => $gone->[-1])->{body}; $knows{$answer}++; keys %knows == 2 } 20;
        sleep $look / 2;
        kill 'STOP', $workers[0];
        remove($nginx, $_) for @$gone;
        post($nginx, $_, $list) for @$new;
        kill 'CONT', $workers[0];
        sleep $look / 2;
        remove($nginx, $_) for @$new;
    }
    is_deeply([ sort $nginx->workers ], \@workers, 'no worker dies of it');
    $nginx->stop;
};

subtest 'servers without a verdict do not open check_fail_open' => sub {
    my $nginx = checking('');
    my @two = good(1, 2);
    my $check = 'check interval=100 rise=1 fall=1000000 timeout=60000 type=http default_down=true; check_fail_open 50;';
    # One starts so slowly that it accepts and does not answer.
    my @new = ($dead, hang(1), '127.0.0.2:' . ($dead =~ s/.*://r));
    # All are new.
    post($nginx, 'fresh', servers(@new) . $check);
    post($nginx, 'more', servers(@two) . $check);
    wait_checked($t, 'more', { map { $_ => 'up' } @two }, 10, 'two servers are up', port => $nginx->{port});
    post($nginx, 'more', servers(@two, @new) . $check);
    wait_until { (checked($t, 'more', port => $nginx->{port})->{$dead}{fall} // 0) >= 5 } 10, 'three more are asked';
    # From one review to the next is a second.
    sleep $look + 0.5;
    is(status_of($nginx, 'fresh'), 502, 'where all are new requests get 502');
    my %by;
    $by{ status_of($nginx, 'more') }++ for 1 .. 30;
    is_deeply(\%by, { 200 => 30 }, 'requests go to those that are up');
    is(lines($nginx, qr/verdicts/), '', 'nothing is said of verdicts');
    is(lines($nginx, qr/while connecting to upstream.*host: "more"/), '', 'no request went to the others');
    $nginx->stop;
};

subtest 'a server that is bad from its first check is told once' => sub {
    my $nginx = checking(join "\n", map {
        "upstream $_ { check interval=100 rise=1 fall=2 timeout=5000 type=http default_down=$_; server $dead; }"
    } qw(true false));
    my $told = sub {
        my $fall = shift;
        wait_until { !grep { (checked($t, $_, port => $nginx->{port})->{$dead}{fall} // 0) < $fall } qw(true false) } 15;
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        is_deeply([ flips($nginx, $_) ], [ [ $dead, 'down', 'connect refused' ] ], "default_down=$_, checked $fall times")
            for qw(true false);
    };
    $told->(6);
    ok($nginx->reload, 'and a reload');
    $told->(12);
    $nginx->stop;
};

subtest 'a server that cannot be asked' => sub {
    plan skip_all => 'for root only' if $> != 0;
    my $nobody = getgrgid((getpwnam 'nobody')[3]);
    my $private = $t->testdir . '/private';
    mkdir $private or die "$private: $!\n";
    my $path = "$private/s.sock";
    my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 5) or die "$path: $!\n";
    chmod 0700, $private;
    subtest 'a socket in a folder that is not for workers' => sub {
        my $nginx = checking("upstream app { check interval=100 rise=1 fall=1 type=http default_down=false; server unix:$path; }",
            globals => $t->globals =~ s/^user .*$/user nobody $nobody;/mr);
        # Its own requests would fail as well.
        wait_checked($t, 'app', { "unix:$path" => 'down' }, 10, 'is down', port => $nginx->{port});
        my @flips = flips($nginx, 'app');
        is(scalar @flips, 1, 'which is told once');
        like($flips[0][2], qr/Permission denied/, 'with the reason');
        $nginx->stop;
    };
    subtest 'an address to which there is no way from here' => sub {
        plan skip_all => 'no unshare --net' if system('unshare --net true >/dev/null 2>&1') != 0;
        my $nowhere = '[2001:db8::1]:80';
        my $nginx = checking("upstream app { check interval=100 rise=1 fall=1 type=http default_down=false; server $nowhere; }",
            start => 1);
        bless $nginx, 'Test::Upsync::Nowhere';
        $nginx->run;
        $nginx->log_like(qr/\[warn\] .*upsync: upstream "app": server \Q$nowhere\E cannot be checked: (?:Network is unreachable|Cannot assign)/,
            'the line names upstream and server');
        sleep $look;
        my @lines = grep { /upsync: .*(?:cannot be checked| is down)/ } split /\n/, $nginx->log;
        cmp_ok(scalar @lines, '<=', 2, 'told once by each worker') or diag join "\n", @lines;
        is(lines($nginx, qr/is down:/), '', 'it is not down');
        $nginx->stop;
    };
};

subtest 'checks are late as all places are taken' => sub {
    my ($number, $most) = (300, 20);
    my ($good) = good(1);
    my $nginx = checking(<<"EOF", workers => 1);
    check_concurrency $most;
    upstream good { check interval=500 timeout=200 type=http; server $good; }
    upstream bad { check interval=500 timeout=200 type=http; @{[ servers(hang(1 .. $number)) ]} }
EOF
    my ($begin, $cpu) = (time, cpu($nginx));
    my $held = 0;
    my $line = qr/upsync: upstream "(?:good|bad)": server \S+ cannot be checked: as many checks are under way as "check_concurrency" allows/;
    wait_until { $held = max($held, all_held($nginx, $hanging->port)); $nginx->log =~ $line } 20, 'it is told';
    my $since = time;
    wait_until { $held = max($held, all_held($nginx, $hanging->port)); $probes->times($good, $since) } 20, 'the good one is asked now and then';
    my $took = time - $begin;
    is(scalar(() = $nginx->log =~ /$line/g), 1, 'told once');
    cmp_ok($held, '<=', $most, "$held checks at a time");
    note sprintf 'CPU of the worker: %.1f %% of a core', 100 * (cpu($nginx) - $cpu) / $took;
    $nginx->stop;
};

# As many certificates as a system may have. To load them takes some 10 ms, for each list and worker.
subtest 'certificates of the system are not loaded for each list' => sub {
    plan skip_all => 'no openssl' unless $has_openssl;
    my $number = 100;
    my $one = Test::Upsync::Nginx::_slurp(authority($t, 'system')->{certificate});
    my $all = $t->write_file('system.crt', $one x 300);
    my %used;
    for my $type (qw(http https)) {
        my $nginx = checking('', main => "env SSL_CERT_FILE=$all;");
        my ($begin, $cpu) = (time, cpu($nginx));
        my $connection = http_connect($nginx->{api});
        post($nginx, "$type$_", "server $dead; check interval=3600000 type=$type;", connection => $connection) for 1 .. $number;
        my $posted = time;
        # The other worker learns of them, too.
        sleep $look / 3;
        my %old = map { $_ => 1 } $nginx->processes;
        my $reload = time;
        ok($nginx->reload(seconds => 60), "$type: reloaded");
        wait_until { !grep { $old{$_} } $nginx->processes } 60;
        my $answer = max(map { my $begin = time; http_get($nginx->{port}, '/worker', timeout => 60); time - $begin } 1 .. 5);
        $used{$type} = cpu($nginx) - $cpu;
        note sprintf '%s: %d lists posted in %.2f s, reload %.2f s, answer after %.0f ms, CPU %.2f s', $type, $number,
            $posted - $begin, time - $reload, 1000 * $answer, $used{$type};
        cmp_ok($posted - $begin + time - $reload, '<', 5, "$type: all is done soon");
        $nginx->stop;
    }
    cmp_ok($used{https}, '<', $used{http} + 1, 'https costs little more than http');
};

# Then nginx's clock stands still from step to step, which is no standstill of the worker.
subtest 'with timer_resolution a server that hangs is found' => sub {
    my ($hangs) = hang(1);
    my $nginx = checking(<<"EOF", main => 'timer_resolution 200ms;');
    upstream app { check interval=300 rise=1 fall=1 timeout=400 type=http default_down=false; server $hangs; }
EOF
    wait_checked($t, 'app', { $hangs => 'down' }, 15, 'it is down', port => $nginx->{port});
    like($nginx->log, qr/server \Q$hangs\E is down: timeout in read/, 'for want of an answer');
    unlike($nginx->log, qr/cannot be checked/, 'and no worker was held up');
    $nginx->stop;
};

subtest 'without a master process' => sub {
    my ($good) = good(1);
    my $nginx = checking(<<"EOF", main => 'master_process off;', workers => 1, start => 1);
    upstream app { check interval=100 rise=1 fall=1 type=http; server $good; server $dead; }
    upstream bad { check interval=100 timeout=60000 type=http; @{[ servers(hang(1)) ]} }
EOF
    $nginx->start;
    wait_until { http_get($nginx->{port}, '/worker')->{status} == 200 } 10, 'nginx runs';
    wait_checked($t, 'app', { $good => 'up', $dead => 'down' }, 10, 'servers are checked', port => $nginx->{port});
    is(status_of($nginx, 'app'), 200, 'and verdicts hold');
    wait_until { connected_to($hanging->port, $nginx->pid)->{ $nginx->pid } } 10, 'a check is under way';
    my $begin = time;
    $nginx->stop;
    cmp_ok(time - $begin, '<', 5, 'it quits');
};

$t->done;
