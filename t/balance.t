#!/usr/bin/perl

# Which server takes a request: turns and weights over all workers, servers that are out, limits,
# retries, and lists that change under a request.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;

# Each is stopped alone.
my @backends = map { $t->backends(1) } 0 .. 4;
my @live = map { $_->addresses } @backends;
my ($broken) = $t->backends(1, location => 'return 500 "broken\n";')->addresses;
my ($mute) = $t->backends(1, location => 'return 444;')->addresses;
my @dead = map { '127.0.0.1:' . $t->free_port } 0 .. 2;

# Upstreams, so that what one subtest does to its servers is not what another finds.
my @names = qw(turns weights zeros downs backups conns full fails single never
    next tries shares gone retry named lines);
my %more = (lines => 'server localhost:' . ($backends[0]->ports)[0] . ' weight=3 max_fails=4;');
my $upstreams = join '', map { <<"CONF" } @names;
    upstream $_ {
        upsync %%CONSUL%%/v1/kv/upstreams/$_/ upsync_type=consul upsync_interval=10ms;
        @{[$more{$_} // '']}
    }
CONF
my $locations = join '', map { "location /$_/ { proxy_pass http://$_; }\n" } @names;

$t->write_file_expand('nginx.conf', <<"EOC");
%%TEST_GLOBALS%%
worker_processes 4;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    add_header X-Worker \$pid always;
    add_header X-Tried "\$upstream_addr" always;
    add_header X-Status "\$upstream_status" always;
$upstreams
    server {
        # A socket for each worker: the kernel then spreads connections over them.
        listen 127.0.0.1:%%PORT_0%% reuseport;
        proxy_connect_timeout 2s;
        location = /list { upstream_show; }
        location ~ ^/variable/(?<name>\\w+) { proxy_pass http://\$name; }
        location /next/500 { proxy_pass http://next; proxy_next_upstream http_500; }
        location /next/off { proxy_pass http://next; proxy_next_upstream off; }
        location /tries/2 { proxy_pass http://tries; proxy_next_upstream_tries 2; }
        $locations
    }
}
EOC
$t->run;

# Puts the servers of an upstream into Consul, { ADDRESS => {PARAMETER => VALUE} }, takes others
# out, and waits until nginx has that list.
sub servers {
    my ($upstream, $servers) = @_;
    my $prefix = "upstreams/$upstream/";
    my $keys = $consul->get("/v1/kv/$prefix?keys");
    my @old = $keys->{status} == 200 ? @{ json($keys->{body}) } : ();
    # First the new ones: the list is never empty in between.
    $consul->kv_put_many({ map { ($prefix . $_ => $servers->{$_}) } keys %$servers });
    $consul->kv_delete($_) for grep { !$servers->{ substr $_, length $prefix } } @old;

    my @lines = map {
        my %p = (weight => 1, max_fails => 2, fail_timeout => 10, %{ $servers->{$_} });
        "        server $_ weight=$p{weight} max_fails=$p{max_fails} fail_timeout=$p{fail_timeout}s"
            . ($p{max_conns} ? " max_conns=$p{max_conns}" : '')
            . ($p{backup} ? ' backup' : '') . ($p{down} ? ' down' : '') . ";\n";
    } sort keys %$servers;
    my $is_there = wait_until {
        my (undef, @list) = split /^/, show($upstream);
        join('', sort @list) eq join '', sort @lines;
    } 5;
    return $is_there || diag(show($upstream));
}

sub show { return http_get($t->port(0), "/list?$_[0]")->{body} }

sub ask { my ($uri, $method) = @_; return http($method // 'GET', $t->port(0), $uri, timeout => 10) }

sub server_of { my $answer = shift; return $answer->{body} =~ /^hello world by (\S+)\n$/ ? $1 : $answer->{status} }

# So many requests, one after the other, each on a connection of its own: who answered.
sub who { my ($uri, $number) = @_; return map { server_of(ask($uri)) } 1 .. $number }

sub counts { my %counts; $counts{$_}++ for @_; return \%counts }

# How often nginx could not connect to an address for the requests to a URI.
sub refusals {
    my ($uri, $address) = @_;
    my $line = qr{connect\(\) failed \(111: .*upstream: "http://\Q$address$uri\E"};
    return scalar grep { $_ =~ $line } split /\n/, $t->log;
}

# A connection with a request that nobody has answered yet.
sub asked {
    my ($uri, $method) = @_;
    my $connection = http_connect($t->port(0));
    $connection->send(($method // 'GET') . " $uri HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    return $connection;
}

# A server in the test's own hands.
sub listener { return IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 64, ReuseAddr => 1) }
sub address { my $socket = shift; return '127.0.0.1:' . $socket->sockport }

sub accepted {
    my $listener = shift;
    return unless IO::Select->new($listener)->can_read(5);
    my $connection = $listener->accept;
    my $head = '';
    while ($head !~ /\r\n\r\n/ && IO::Select->new($connection)->can_read(5)) {
        sysread $connection, $head, 4096, length $head or last;
    }
    return $connection;
}

sub reset_connection {
    my $connection = shift;
    setsockopt $connection, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0;
    close $connection;
    return;
}

subtest 'two equal servers alternate over all workers' => sub {
    ok(servers(turns => { map { $_ => {} } @live[0, 1] }), 'listed');
    my @answers = map { ask('/turns/') } 1 .. 100;
    my @who = map { server_of($_) } @answers;
    my ($first, $second) = $who[0] eq $live[0] ? @live[0, 1] : @live[1, 0];
    is_deeply(\@who, [($first, $second) x 50], 'strictly');
    my %workers = map { $_->{headers}{'x-worker'} => 1 } @answers;
    cmp_ok(keys %workers, '>', 1, 'by several workers');

    is_deeply([who('/variable/turns', 20)], [($first, $second) x 10], 'also by a variable');
    is_deeply([map { who($_ % 2 ? '/variable/turns' : '/turns/', 1) } 1 .. 20],
        [($first, $second) x 10], 'in one order with the others');
    my @counts = wrk('http://127.0.0.1:' . $t->port(0) . '/turns/', seconds => 1, connections => 8);
    is($counts[0]{non_2xx} + $counts[0]{socket_errors}, 0, 'no errors under load');
    my ($a, $b) = map { $backends[$_]->counts->{ $live[$_] } } 0, 1;
    cmp_ok(abs($a - $b), '<=', 8, 'nor more to one than to the other, but for those under way');

    ok(servers(turns => { map { $_ => {} } @live[0 .. 4] }), 'five');
    my @five = who('/turns/', 50);
    is_deeply(counts(@five[0 .. 4]), { map { $_ => 1 } @live }, 'each once');
    is_deeply(\@five, [(@five[0 .. 4]) x 10], 'and again in the same order');
};

subtest 'weights' => sub {
    ok(servers(weights => { $live[0] => { weight => 5 }, $live[1] => { weight => 2 }, $live[2] => {} }), 'listed');
    my @who = who('/weights/', 800);
    is_deeply(counts(@who), { $live[0] => 500, $live[1] => 200, $live[2] => 100 }, '5 : 2 : 1');
    my $joined = join '', map { $_ eq $live[0] ? 'a' : 'b' } @who;
    unlike($joined, qr/aaaa/, 'the heavy one does not take its turns in a row');

    ok(servers(weights => { $live[0] => {}, $live[1] => { weight => 3 } }), 'changed');
    is_deeply(counts(who('/weights/', 80)), { $live[0] => 20, $live[1] => 60 }, '1 : 3');
};

subtest 'weight=0 and down' => sub {
    ok(servers(zeros => { $live[0] => {}, $live[1] => { weight => 0 } }), 'weight=0 is listed');
    is_deeply(counts(who('/zeros/', 20)), { $live[0] => 20 }, 'and gets none');
    ok(servers(zeros => { $live[0] => { weight => 0 }, $live[1] => { weight => 0 } }), 'all 0');
    is(ask('/zeros/')->{status}, 502, 'none to ask');
    ok(servers(zeros => { $live[0] => { weight => 0 } }), 'a single one');
    is(ask('/zeros/')->{status}, 502, 'is not asked either');

    ok(servers(downs => { $live[0] => { down => 1 }, $live[1] => {}, $live[2] => {} }), 'down is listed');
    is_deeply(counts(who('/downs/', 20)), { $live[1] => 10, $live[2] => 10 }, 'and gets none');
    ok(servers(downs => { $live[0] => { down => 1 } }), 'a single one');
    is(ask('/downs/')->{status}, 502, 'is not asked');
    ok(servers(downs => { $live[0] => {} }), 'up again');
    is(server_of(ask('/downs/')), $live[0], 'is asked');
};

subtest 'backup' => sub {
    my ($first, $second) = map { $t->backends(1) } 1 .. 2;
    my ($a, $b) = map { $_->addresses } $first, $second;
    my %primary = (max_fails => 1, fail_timeout => 1);
    my %all = ($a => {%primary}, $b => {%primary}, $live[2] => { backup => 1 }, $live[3] => { backup => 1 });
    ok(servers(backups => \%all), 'listed');
    is_deeply(counts(who('/backups/', 20)), { $a => 10, $b => 10 }, 'none as long as primaries are there');
    $first->stop;
    is_deeply(counts(who('/backups/', 20)), { $b => 20 }, 'nor as long as one is');
    $second->stop;
    # This one finds the last primary out. It is a retry, which has turns of its own.
    like(server_of(ask('/backups/')), qr/^(?:\Q$live[2]\E|\Q$live[3]\E)$/, 'a backup when none is');
    is_deeply(counts(who('/backups/', 20)), { $live[2] => 10, $live[3] => 10 }, 'then all of them, by turns');
    $second->run;
    wait_until { server_of(ask('/backups/')) eq $b } 10, 'the primary is asked when it is back';
    is_deeply(counts(who('/backups/', 10)), { $b => 10 }, 'and takes all');

    ok(servers(backups => { $a => { down => 1 }, $b => { weight => 0 }, $live[2] => { backup => 1 } }), 'primaries taken out');
    is_deeply(counts(who('/backups/', 5)), { $live[2] => 5 }, 'are as good as failed');
    ok(servers(backups => { $live[2] => { backup => 1 } }), 'a backup alone');
    is_deeply(counts(who('/backups/', 5)), { $live[2] => 5 }, 'serves');
};

subtest 'max_conns' => sub {
    my $slow = listener();
    ok(servers(conns => { address($slow) => { max_conns => 2 }, $live[0] => {} }), 'listed');
    for my $round (1 .. 2) {
        my @asked = map { asked('/conns/') } 1 .. 40;
        my @held = map { accepted($slow) } 1 .. 2;
        my @ready;
        wait_until {
            @ready = grep { IO::Select->new($_->{socket})->can_read(0) } @asked;
            @ready == 38;
        } 5, "round $round: the others are answered";
        is_deeply(counts(map { server_of($_->receive('GET')) } @ready), { $live[0] => 38 }, 'by the other server');
        ok(!IO::Select->new($slow)->can_read(0), 'no third connection');
        syswrite $_, "HTTP/1.0 200 OK\r\n\r\nslow" for @held;
        close $_ for @held;
        my %done = map { $_ => 1 } @ready;
        is_deeply([map { $_->receive('GET')->{body} } grep { !$done{$_} } @asked], ['slow', 'slow'], 'two wait for it');
    }

    my $other = listener();
    ok(servers(full => { address($slow) => { max_conns => 2 }, address($other) => { max_conns => 1 } }), 'two with a limit');
    my $mark = $t->log_mark;
    my @asked = map { asked('/full/') } 1 .. 6;
    my @held = (accepted($slow), accepted($slow), accepted($other));
    my @refused;
    wait_until {
        @refused = grep { IO::Select->new($_->{socket})->can_read(0) } @asked;
        @refused == 3;
    } 5, 'three are refused';
    is_deeply(counts(map { $_->receive('GET')->{status} } @refused), { 502 => 3 }, 'with 502');
    $t->log_like(qr/no live upstreams while connecting to upstream/, 'and a log line', $mark);
    reset_connection(shift @held);
    my %refused = map { $_ => 1 } @refused;
    my @waiting = grep { !$refused{$_} } @asked;
    wait_until { grep { IO::Select->new($_->{socket})->can_read(0) } @waiting } 5, 'one is broken off';
    my $next = asked('/full/');
    my $new = accepted($slow);
    ok($new, 'its place is free again');
    push @held, $new;
    for (@held) { syswrite $_, "HTTP/1.0 200 OK\r\n\r\nslow"; close $_ }
    is($next->receive('GET')->{body}, 'slow', 'and used');
};

subtest 'max_fails and fail_timeout' => sub {
    my $server = $t->backends(1);
    my ($address) = $server->addresses;
    $server->stop;
    my $mark = $t->log_mark;
    ok(servers(fails => { $address => { max_fails => 3, fail_timeout => 1 }, $live[0] => {} }), 'listed');
    my $start = time;
    # It is asked three times long before the first time is over.
    my @who = who('/fails/', 20);
    my $took = time - $start;
    is_deeply(counts(@who), { $live[0] => 20 }, 'no request fails');
    SKIP: {
        skip "this machine took $took s", 1 if $took > 1;
        is(refusals('/fails/', $address), 3, 'max_fails attempts');
    }
    $t->log_like(qr/upstream server temporarily disabled/, 'it is said', $mark);
    my $asked = refusals('/fails/', $address);
    wait_until { ask('/fails/'); refusals('/fails/', $address) > $asked } 5, 'tried after fail_timeout';
    cmp_ok(time - $start, '>', 1, 'not before');
    my $tried = time;
    who('/fails/', 10);
    SKIP: {
        skip 'this machine is too slow', 1 if time - $tried > 1;
        is(refusals('/fails/', $address), $asked + 1, 'by one request');
    }
    $server->run;
    wait_until { server_of(ask('/fails/')) eq $address } 5, 'it is back';
    is_deeply(counts(who('/fails/', 20)), { $address => 10, $live[0] => 10 }, 'with its share');

    $mark = $t->log_mark;
    ok(servers(single => { $dead[0] => { max_fails => 1, fail_timeout => 60 } }), 'a single server');
    is_deeply([who('/single/', 4)], [(502) x 4], 'that is dead');
    is(refusals('/single/', $dead[0]), 4, 'is asked each time');
    unlike($t->log($mark), qr/temporarily disabled|no live upstreams/, 'and never out');

    $mark = $t->log_mark;
    ok(servers(never => { $dead[0] => { max_fails => 0 }, $live[0] => {} }), 'max_fails=0');
    is_deeply(counts(who('/never/', 20)), { $live[0] => 20 }, 'no request fails');
    is(refusals('/never/', $dead[0]), 10, 'it is asked at each of its turns, and no oftener for the retries');
    unlike($t->log($mark), qr/temporarily disabled/, 'and never out');

    # As when a list grows from one dead server to several: see lessons.md of what came before us.
    ok(servers(single => { map { $_ => { max_fails => 1 } } @dead[0, 1], @live[0, 1] }), 'two live and two dead');
    is_deeply(counts(who('/single/', 40)), { $live[0] => 20, $live[1] => 20 }, 'every request finds a live one');
};

subtest 'proxy_next_upstream' => sub {
    ok(servers(next => { $dead[0] => { max_fails => 0 }, $broken => { max_fails => 0 }, $live[0] => {} }), 'listed');
    my @answers = map { ask('/next/') } 1 .. 30;
    is_deeply([sort keys %{ counts(map { $_->{status} } @answers) }], [200, 500], 'by default 500 is an answer');
    ok(!(grep { $_->{headers}{'x-status'} =~ /500,/ } @answers), 'that ends it');
    ok((grep { $_->{headers}{'x-tried'} =~ /^\Q$dead[0]\E, / } @answers), 'and an error is not');

    @answers = map { ask('/next/500') } 1 .. 30;
    my %status = map { $_->{headers}{'x-status'} => $_->{status} } @answers;
    is($status{'500, 200'}, 200, 'http_500: a 500 goes on to the next');
    is($status{502}, 502, 'and an error, not named, does not');
    ok(!$status{500}, 'no 500 is left');

    @answers = map { ask('/next/off') } 1 .. 30;
    is_deeply([grep { $_->{headers}{'x-tried'} =~ /,/ } @answers], [], 'off: one attempt');
    is_deeply(counts(map { $_->{status} } @answers), { 200 => 10, 500 => 10, 502 => 10 }, 'and its answer');

    ok(servers(next => { $mute => { max_fails => 0 }, $live[0] => { max_fails => 0 } }), 'one that answers nothing');
    is_deeply(counts(map { ask('/next/')->{status} } 1 .. 10), { 200 => 10 }, 'GET is sent again');
    is_deeply(counts(map { ask('/next/', 'POST')->{status} } 1 .. 10), { 200 => 5, 502 => 5 }, 'POST is not');

    my %tries = map { $_ => { max_fails => 0 } } @dead;
    ok(servers(tries => { %tries, $live[0] => {} }), 'three dead of four');
    my @all = map { ask('/tries/') } 1 .. 12;
    is_deeply(counts(map { $_->{status} } @all), { 200 => 12 }, 'without a limit the live one is found');
    is((sort map { scalar split /, /, $_->{headers}{'x-tried'} } @all)[-1], 4, 'at last');
    my @two = map { ask('/tries/2') } 1 .. 20;
    is_deeply([grep { split(/, /, $_->{headers}{'x-tried'}) > 2 } @two], [], 'proxy_next_upstream_tries 2: never three');
    my %by = map { $_->{headers}{'x-status'} => $_->{status} } @two;
    is_deeply(\%by, { 200 => 200, '502, 200' => 200, '502, 502' => 502 }, 'but any two') or diag explain \%by;
};

subtest 'the share of a server that is out' => sub {
    ok(servers(shares => { $dead[0] => { max_fails => 1, fail_timeout => 60 }, map { $_ => {} } @live[0 .. 3] }), 'listed');
    my $counts = counts(who('/shares/', 400));
    # One of them has the request that the dead one failed, too.
    cmp_ok(abs(($counts->{$_} // 0) - 100), '<=', 1, "a quarter to $_") for @live[0 .. 3];
    is(refusals('/shares/', $dead[0]), 1, 'the dead one is asked once');

    ok(servers(gone => { map { $_ => { max_fails => 1, fail_timeout => 60 } } @dead[0, 1] }), 'all dead');
    my $mark = $t->log_mark;
    my @answers = map { ask('/gone/') } 1 .. 2;
    is_deeply([map { $_->{status} } @answers], [502, 502], 'no server answers');
    is($answers[0]{headers}{'x-status'}, '502, 502', 'the first asked both');
    is($answers[1]{headers}{'x-tried'}, 'gone', 'the second none');
    $t->log_like(qr/\[error\].* no live upstreams while connecting to upstream.*upstream: "http:\/\/gone\/gone\/"/,
        'as the log says', $mark);
};

subtest 'a list that changes under a request' => sub {
    my ($a, $b) = map { listener() } 1 .. 2;
    ok(servers(retry => { address($a) => {} }), 'one server');
    my $asked = asked('/retry/');
    my $held = accepted($a);
    ok($held, 'holds a request');
    ok(servers(retry => { $live[0] => {} }), 'and leaves');
    reset_connection($held);
    is(server_of($asked->receive('GET')), $live[0], 'when it fails, the new one answers');

    ok(servers(retry => { address($a) => {}, address($b) => {} }), 'two servers');
    $asked = asked('/retry/');
    my ($listener) = IO::Select->new($a, $b)->can_read(5);
    $held = accepted($listener);
    ok(servers(retry => { $live[1] => {}, $live[2] => {} }), 'leave both');
    reset_connection($held);
    my $answer = $asked->receive('GET');
    ok((grep { server_of($answer) eq $_ } @live[1, 2]), 'one of the new answers') or diag $answer->{raw};
    is(scalar(split /, /, $answer->{headers}{'x-tried'}), 2, 'as the second asked');
    is_deeply([IO::Select->new($a, $b)->can_read(0)], [], 'not the other that left');

    ok(servers(retry => { address($a) => {}, address($b) => {} }), 'two once more');
    $asked = asked('/retry/');
    ($listener) = IO::Select->new($a, $b)->can_read(5);
    $held = accepted($listener);
    my %never = (max_fails => 0);
    ok(servers(retry => { (map { $_ => {%never} } @dead), $live[2] => { backup => 1 } }), 'leave for three that refuse and a backup');
    reset_connection($held);
    $answer = $asked->receive('GET');
    is(server_of($answer), $live[2], 'all of the new list are tried: ' . ($answer->{headers}{'x-tried'} // ''));

    ok(servers(retry => { address($a) => {} }), 'one server again');
    $asked = asked('/retry/');
    $held = accepted($a);
    ok(servers(retry => { $live[0] => {} }), 'leaves');
    syswrite $held, "HTTP/1.0 200 OK\r\n\r\nstill here";
    close $held;
    is($asked->receive('GET')->{body}, 'still here', 'and may finish its answer');

    ok(servers(retry => { address($a) => {} }), 'once more');
    $asked = asked('/retry/', 'POST');
    $held = accepted($a);
    ok(servers(retry => { $live[0] => {} }), 'another list');
    reset_connection($held);
    is($asked->receive('POST')->{status}, 502, 'POST is not sent again for it');
};

subtest 'host names' => sub {
    my ($port) = $backends[0]->ports;
    is(show('lines') =~ /^( +server 127\.0\.0\.1:.*)$/m && $1,
        "        server 127.0.0.1:$port weight=3 max_fails=4 fail_timeout=10s;", 'of a server line');
    is(server_of(ask('/lines/')), $live[0], 'which serves until Consul has a list');

    $consul->kv_put("upstreams/named/localhost:$port", { max_fails => 1, fail_timeout => 60 });
    wait_until { show('named') =~ /^        server 127\.0\.0\.1:$port weight=1 max_fails=1 fail_timeout=60s;$/m } 5, 'of a key';
    is_deeply(counts(who('/named/', 10)), { $live[0] => 10 }, 'serves');
    $consul->kv_put('upstreams/named/no-such-name.invalid:80', '');
    $t->log_like(qr/upstream "named": host name "no-such-name\.invalid" does not resolve: .*, left out/, 'one that does not resolve');
    is_deeply(counts(who('/named/', 10)), { $live[0] => 10 }, 'hides no other');
};

$t->done;
