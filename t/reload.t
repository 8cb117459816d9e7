#!/usr/bin/perl

# What outlives a reload, a killed worker and a restart.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $times = $ENV{TEST_TIMES} // 20;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my @servers = $t->backends(4)->addresses;
my $slow = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 50,
    ReuseAddr => 1) or die "listen: $!";
my $slow_address = '127.0.0.1:' . $slow->sockport;

# Keeps a reload from being the same as the last: what stands here may change.
my %conf = (zone => '1m', lines => '', listen => '127.0.0.1:%%PORT_1%%', upsync => <<'EOF');
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=20ms;
        upsync_dump_path %%TESTDIR%%/app.conf;
EOF

sub configure {
    my %is = (%conf, @_);
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 3;
events { worker_connections 2048; }
http {
    %%TEST_GLOBALS_HTTP%%
    upsync_zone $is{zone};
    upstream app {
        $is{lines}
        $is{upsync}
    }
    upstream one {
        upsync %%CONSUL%%/v1/kv/upstreams/one/ upsync_type=consul upsync_interval=20ms;
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        listen $is{listen};
        location / { proxy_pass http://app; }
        location /one { proxy_pass http://one; proxy_read_timeout 20s; }
        location /list { upstream_show; }
        location /pid { return 200 \$pid; }
    }
}
EOF
}

configure();
$consul->kv_put("upstreams/app/$servers[0]", '');
$consul->kv_put("upstreams/one/$slow_address", '{"max_conns":1}');
$t->run;
wait_until { served('app') == 1 && served('one') == 1 } 10, 'synced';

subtest 'reloads and killed workers, under load and churn' => sub {
    my $load = wrk('http://127.0.0.1:' . $t->port(0) . '/', connections => 64,
        seconds => 600, background => 1, pid => \my $wrk);
    my $churn = churn();
    my ($reloaded, $killed) = (0, 0);
    for (1 .. $times) {
        $reloaded += $t->reload ? 1 : 0;
        my @workers = $t->workers;
        $killed += $t->kill_worker($workers[ rand @workers ]) ? 1 : 0;
    }
    kill 'TERM', $churn;
    waitpid $churn, 0;
    kill 'INT', $wrk;
    my $result = $load->();

    is($reloaded, $times, "$times reloads");
    is($killed, $times, "$times killed workers were replaced");
    cmp_ok($result->{requests}, '>', 100, "requests meanwhile: $result->{requests}");
    is($result->{non_2xx}, 0, 'no request got an error, but for those of killed workers');
    my %wanted = map { $_ => 1 } in_consul();
    wait_until { join(' ', sort(listed())) eq join(' ', sort keys %wanted) } 10,
        'in the end the list is that of Consul';
    wait_until { !$t->old_workers } 1, 'no old worker is left';
    is(http_get($t->port(0), '/')->{status}, 200, 'served') for 1 .. 3;
};

subtest 'a change after all that is seen by every worker' => sub {
    $consul->kv_put("upstreams/app/$_", '') for @servers[ 0, 1 ];
    $consul->kv_delete("upstreams/app/$_") for @servers[ 2, 3 ];
    wait_until { join(' ', sort(listed())) eq join(' ', sort @servers[ 0, 1 ]) } 10, 'listed';
    my %seen = map { $_ => 0 } @servers;
    $seen{$_}++ for map { http_get($t->port(0), '/')->{body} =~ /by (\S+)/ } 1 .. 100;
    is_deeply([ @seen{@servers} ], [ 50, 50, 0, 0 ], 'and served in turn');
};

subtest 'connections of a killed worker are given back' => sub {
    for my $round (1 .. 3) {
        my ($held, $pid, $again);
        wait_until { ($held, $pid) = hold_one() } 10, 'one is held';
        is(http_get($t->port(0), '/one')->{status}, 502, 'max_conns is reached');
        $t->kill_worker($pid);
        ($again) = hold_one();
        ok($again, 'the replacement finds it free');
        $_->close for grep { $_ } $held, $again;
    }
};

subtest 'connections of a worker killed while it was shutting down are given back' => sub {
    my ($held, $pid);
    wait_until { ($held, $pid) = hold_one() } 10, 'one is held';
    ok($t->reload, 'reload');
    wait_until { "@{[ $t->old_workers ]}" eq $pid } 5, 'by an old worker, the only one left';
    is(http_get($t->port(0), '/one')->{status}, 502, 'max_conns is reached');
    $t->nginx->expect_log(qr/process $pid exited on signal 9/);
    kill 'KILL', $pid;
    my $again;
    wait_until { ($again) = hold_one() } 10, 'free again, though nobody replaces it';
    $_->close for grep { $_ } $held, $again;
};

# The mutex of the zone is the first word of its memory: the process that holds it.
subtest 'a worker killed with the lock held, during a reload' => sub {
    my $master = $t->nginx->pid;
    my ($worker) = $t->workers;
    no warnings 'portable';
    my @maps = map { [ map { hex } /^([0-9a-f]+)-([0-9a-f]+) rw-s/ ] } lines("/proc/$master/maps");
    my ($zone) = map { $_->[0] } grep { @$_ && $_->[1] - $_->[0] == 1 << 20 } @maps;
    open my $memory, '+<:raw', "/proc/$master/mem" or plan skip_all => "memory of nginx: $!";
    kill 'STOP', $worker;
    sysseek $memory, $zone, 0;
    syswrite($memory, pack 'Q', $worker) or die "memory of nginx: $!";
    my $mark = $t->nginx->log_mark;
    $t->signal('HUP');
    wait_until { $t->log($mark) =~ /reconfiguring/ } 10, 'a reload begins';
    $t->nginx->expect_log(qr/process $worker exited on signal 9/);
    kill 'KILL', $worker;
    wait_until { !grep({ $_ == $worker } $t->workers) && $t->workers == 3 } 10, 'and ends';
    change_is_seen('changes are seen');
};

subtest 'fails outlive a reload' => sub {
    my $dead = '127.0.0.1:' . $t->free_port;
    $consul->kv_put("upstreams/app/$dead", '{"max_fails":1,"fail_timeout":60}');
    wait_until { grep { $_ eq $dead } listed() } 5, 'a dead server is listed';
    http_get($t->port(0), '/') for 1 .. 6;
    my $refused = () = $t->log =~ /\Q$dead\E/g;
    $t->reload;
    http_get($t->port(0), '/') for 1 .. 12;
    is(() = $t->log =~ /\Q$dead\E/g, $refused, 'it is not tried again');
    $consul->kv_delete("upstreams/app/$dead");
    wait_until { !grep { $_ eq $dead } listed() } 5, 'gone';
};

subtest 'a reload that fails changes nothing' => sub {
    my $before = show();
    configure(zone => '2m', lines => 'nonsense;');
    ok($t->reload(fails => 1), 'refused');
    is(show(), $before, 'the same list');
    configure(upsync => $conf{upsync} . 'zone app 64k; upsync_lb nonsense;');
    ok($t->reload(fails => 1), 'refused');

    $consul->stop;
    my $silent = $conf{upsync} =~ s/app/unheard/gr;
    configure(upsync => "$conf{upsync} } upstream unheard { $silent");
    ok($t->reload, 'an upstream without any list');
    configure(upsync => "$conf{upsync} } upstream unheard { server 127.0.0.1:1; $silent",
        listen => '127.0.0.1:' . $slow->sockport);
    ok($t->reload(fails => 1), 'a server line, refused for another reason');
    like(http_get($t->port(0), '/list?unheard')->{body}, qr/count: 0/, 'it has none still');
    $consul->restart(keep_data => 1);
    change_is_seen('and a change is still seen');
};

subtest 'a zone of another size takes the lists over' => sub {
    $consul->stop;
    my $before = show();
    for my $zone ('2m', '512k') {
        configure(zone => $zone);
        ok($t->reload, "zone of $zone");
        is(show(), $before, 'the same list without Consul');
        is(served('one'), 1, 'also of an upstream that has no dump');
        is(http_get($t->port(0), '/')->{status}, 200, 'served');
    }
    $consul->restart;
    change_is_seen('and changes go on');
};

subtest 'a zone too small for the lists is refused' => sub {
    $consul->kv_put_many({ map { ("upstreams/many/10.0.0.1:$_" => '') } 1 .. 1000 });
    my $many = $conf{upsync} =~ s/app/many/gr;
    configure(upsync => "$conf{upsync} } upstream many { $many");
    ok($t->reload, 'a larger list');
    wait_until { http_get($t->port(0), '/list?many')->{body} =~ /count: 1000/ } 10, 'synced';
    configure(zone => '128k', upsync => "$conf{upsync} } upstream many { $many");
    ok($t->reload(fails => 1), 'refused');
    $t->log_like(qr/\[emerg\].*no memory in the shared zone, raise "upsync_zone"/, 'and why');
    like(http_get($t->port(0), '/list?many')->{body}, qr/count: 1000/, 'the list is as it was');
    configure();
    ok($t->reload, 'back');
};

subtest 'a reload without the directives, and back' => sub {
    my $before = show();
    configure(upsync => "server $servers[0];");
    ok($t->reload, 'without');
    like(http_get($t->port(0), '/')->{body}, qr/\Q$servers[0]\E/, 'the static server serves');
    configure();
    ok($t->reload, 'with');
    is(show(), $before, 'the list is there again');
    change_is_seen('and followed');
};

subtest 'server lines that changed before any answer of the source' => sub {
    $consul->stop;
    my $silent = $conf{upsync} =~ s/app/silent/gr;
    my $two = sub { "$conf{upsync} } upstream silent { server $_[0]; $silent" };
    configure(upsync => $two->('127.0.0.1:1'));
    ok($t->reload, 'one line');
    like(http_get($t->port(0), '/list?silent')->{body}, qr/127\.0\.0\.1:1 /, 'is the list');
    configure(upsync => $two->('127.0.0.1:2'));
    ok($t->reload, 'another line');
    like(http_get($t->port(0), '/list?silent')->{body}, qr/127\.0\.0\.1:2 /, 'is the list');
    $consul->restart;
    configure();
    ok($t->reload, 'back');
};

subtest 'a restart without Consul' => sub {
    change_is_seen('synced');
    my $before = show();
    wait_until { $t->read_file('app.conf') eq join '', map { s/^\s+//r } grep { /server/ }
        map { "$_\n" } split /\n/, $before =~ s/.*count.*\n//r } 5, 'dumped';
    $consul->stop('KILL');
    $t->stop;
    $t->run;
    is(show(), $before, 'the last list');
    is(http_get($t->port(0), '/')->{status}, 200, 'serves');
    $consul->restart(keep_data => 1);
    change_is_seen('and Consul is followed');
};

subtest 'an old worker stops at once when it has no traffic' => sub {
    my @old = $t->workers;
    my $start = time;
    $t->signal('HUP');
    wait_until { !grep { kill 0, $_ } @old } 5, 'gone';
    cmp_ok(time - $start, '<', 2, sprintf 'after %.2f s', time - $start);
};

$t->done;

sub show { return http_get($t->port(0), '/list?app')->{body} }

sub lines {
    open my $file, '<', $_[0] or die "$_[0]: $!";
    return <$file>;
}

sub served { return () = http_get($t->port(0), "/list?$_[0]")->{body} =~ /^ +server/mg }

sub listed { return show() =~ /^ +server (\S+)/mg }

sub in_consul {
    return map { $_->{Key} =~ m{([^/]+)$} } @{ json($consul->get('/v1/kv/upstreams/app/?recurse')->{body}) };
}

sub change_is_seen {
    my $name = shift;
    my $new = "127.0.0.1:" . (20000 + int rand 10000);
    $consul->kv_put("upstreams/app/$servers[0]", '');
    $consul->kv_put("upstreams/app/$new", '{"down":1}');
    wait_until { grep { $_ eq $new } listed() } 15, $name;
    $consul->kv_delete("upstreams/app/$new");
    wait_until { !grep { $_ eq $new } listed() } 15, "$name: removed";
}

# Servers come and go until killed; the first always stays.
sub churn {
    defined(my $pid = fork) or die "fork: $!";
    return $pid if $pid;
    local $SIG{TERM} = sub { POSIX::_exit(0) };
    while (1) {
        for my $server (@servers[ 1 .. 3 ]) {
            rand() < 0.5 ? $consul->kv_put("upstreams/app/$server", '{"weight":' . int(1 + rand 3) . '}')
                : $consul->kv_delete("upstreams/app/$server");
            sleep 0.02;
        }
    }
}

# A request that waits for its answer, and the worker it is with; nothing if that is refused. The
# server accepts it and says nothing.
sub hold_one {
    my $connection = http_connect($t->port(0));
    my $pid = http_get(0, '/pid', connection => $connection)->{body};
    $connection->send("GET /one HTTP/1.1\r\nHost: a\r\n\r\n");
    my ($ready) = IO::Select->new($slow, $connection->{socket})->can_read(10);
    return unless $ready && $ready == $slow;
    $connection->{server} = $slow->accept;
    return ($connection, $pid);
}
