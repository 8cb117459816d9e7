#!/usr/bin/perl

# Servers from Consul's key/value store: upsync_type=consul.

use strict;
use warnings;

use IO::Socket::IP;
use Socket qw(SOCK_STREAM getaddrinfo getnameinfo NI_NUMERICHOST NIx_NOSERV);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my $socket = 'unix:' . $t->testdir . '/backend.sock';
my $ipv6 = IO::Socket::IP->new(LocalHost => '::1', Listen => 1) ? '[::1]:' . $t->free_port : undef;
my $backends = $t->backends(3, listen => [$socket, $ipv6 // ()]);
my ($first, $second, $third) = $backends->addresses;
my $dead = '127.0.0.1:' . $t->free_port;

# An upstream for each subtest, which follows the key upstreams/NAME/.
my @names = qw(values kinds names folders badkeys badvalues weights backup emptied empty order same state pace);
my %more = (empty => 'allow_empty=on');
my %interval = (pace => '1s');
my ($port) = $consul->port;
my %consul = (values => "localhost:$port", names => "http://127.0.0.1:$port");
my %arguments = (kinds => '?dc=dc1&stale');
my $upstreams = join '', map { <<"EOF" } @names;
    upstream $_ {
        upsync @{[ $consul{$_} // $consul->address ]}/v1/kv/upstreams/$_/@{[ $arguments{$_} // '' ]}
               upsync_type=consul upsync_interval=@{[ $interval{$_} // '50ms' ]} @{[ $more{$_} // '' ]};
        upsync_dump_path $_.conf;
    }
EOF
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
env "RES_OPTIONS=timeout:1 attempts:1";
events {}
http {
    %%TEST_GLOBALS_HTTP%%
$upstreams
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location /list { upstream_show; }
        location ~ ^/to/(\\w+) { proxy_pass http://\$1; proxy_connect_timeout 2s; }
    }
}
EOF
$t->run;

my $defaults = 'weight=1 max_fails=2 fail_timeout=10s';
my $then = 'its last good parameters stay, or else the defaults';

sub put {
    my ($name, %values) = @_;
    $consul->kv_put("upstreams/$name/$_", $values{$_}) for sort keys %values;
    return;
}

sub delete_keys {
    my ($name, @keys) = @_;
    $consul->kv_delete("upstreams/$name/$_") for @keys;
    return;
}

sub servers {
    my $body = http_get($t->port(0), "/list?$_[0]")->{body};
    return $body =~ /^ {8}server (.*);$/mg;
}

# The servers in the order they are shown, each as "ADDRESS PARAMETERS".
sub list_is {
    my ($upstream, $expected, $name) = @_;
    my @servers;
    wait_until { "@{[ @servers = servers($upstream) ]}" eq "@$expected" } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\@servers, $expected, $name);
}

# The same, whatever the order.
sub servers_are {
    my ($upstream, $expected, $name) = @_;
    my @servers;
    wait_until { "@{[ @servers = sort(servers($upstream)) ]}" eq "@{[ sort @$expected ]}" } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\@servers, [sort @$expected], $name);
}

# Who answers N requests: address => number.
sub answers {
    my ($upstream, $number) = @_;
    my %answers;
    for (1 .. $number) {
        my $answer = http_get($t->port(0), "/to/$upstream");
        $answers{ $answer->{body} =~ /^hello world by (\S+)$/ ? $1 : $answer->{status} }++;
    }
    return \%answers;
}

sub log_has {
    my ($upstream, $line, $number) = @_;
    my $text = qq{upsync: upstream "$upstream": $line};
    my $count = sub { scalar(() = $t->log =~ /\Q$text\E$/mg) };
    wait_until { $count->() >= ($number // 1) } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($count->(), $number // 1, "logged: $line");
}

sub last_version { return ($t->log =~ /upstream "$_[0]": .* version (\d+),/g)[-1] }

# The name that does not resolve is asked for while the rest of the test runs.
put('names', 'no-such-host.invalid:80' => '', $first => '', "localhost:$1" => '') if $second =~ /:(\d+)$/;

put('pace', $first => '');

subtest 'parameters' => sub {
    my $all = 'weight=10 max_fails=3 fail_timeout=20s max_conns=7 backup down';
    my %values = (
        '127.0.0.1:1' => ['', $defaults],
        '127.0.0.1:2' => ['{}', $defaults],
        '127.0.0.1:3' => [" \n", $defaults],
        '127.0.0.1:4' => ['{"weight":10,"max_fails":3,"fail_timeout":20,"max_conns":7,"down":1,"backup":1}', $all],
        '127.0.0.1:5' => ['{"weight":"10","max_fails":"3","fail_timeout":"20","max_conns":"7","down":"1","backup":"1"}', $all],
        '127.0.0.1:6' => ['{"down":true,"backup":false,"max_fails":0}', 'weight=1 max_fails=0 fail_timeout=10s down'],
        '127.0.0.1:7' => ['{"down":0,"backup":"0"}', $defaults],
        '127.0.0.1:8' => ['{"weight":null,"color":5,"tags":["a"]}', $defaults],
        '127.0.0.1:9' => ['{"weight":65535,"fail_timeout":0}', 'weight=65535 max_fails=2 fail_timeout=0s'],
        '127.0.0.1:11' => ['{"slow_start":5,"drain":1}', "$defaults slow_start=5s drain"],
        '127.0.0.1:10' => ['{"weight":0}', 'weight=0 max_fails=2 fail_timeout=10s'],
    );
    $consul->kv_put_many({ map { ("upstreams/values/$_" => $values{$_}[0]) } keys %values });
    servers_are('values', [map { "$_ $values{$_}[1]" } keys %values], 'shown');
};

subtest 'IPv4, IPv6 and unix sockets' => sub {
    my @servers = ($first, $socket, $ipv6 // ());
    put('kinds', map { ($_ => '') } @servers);
    servers_are('kinds', [map { "$_ $defaults" } @servers], 'shown');
    is_deeply(answers('kinds', 2 * @servers), { map { ($_ => 2) } @servers }, 'and served');
};

subtest 'a key in a folder, the same address twice' => sub {
    put('folders', '127.0.0.1:1' => { weight => 2 }, 'dc1/127.0.0.1:1' => { weight => 3 }, 'dc1/rack2/127.0.0.1:2' => '');
    $consul->kv_put('upstreams/folders/dc2/', '');
    servers_are('folders', ["127.0.0.1:1 weight=2 max_fails=2 fail_timeout=10s", "127.0.0.1:2 $defaults"], 'one server');
    delete_keys('folders', '127.0.0.1:1');
    servers_are('folders', ["127.0.0.1:1 weight=3 max_fails=2 fail_timeout=10s", "127.0.0.1:2 $defaults"],
        'one key deleted, the other is left');
    delete_keys('folders', 'dc1/127.0.0.1:1');
    servers_are('folders', ["127.0.0.1:2 $defaults"], 'both deleted');
    unlike($t->log, qr/upstream "folders": .*skipped/, 'a folder is no bad key');
};

subtest 'a key without an address is skipped' => sub {
    my %bad = (
        'nonsense' => 'no port in "nonsense", expected HOST:PORT',
        '127.0.0.1' => 'no port in "127.0.0.1", expected HOST:PORT',
        '127.0.0.1:0' => 'invalid port in "127.0.0.1:0", expected 1 to 65535',
        '127.0.0.1:65536' => 'invalid port in "127.0.0.1:65536", expected 1 to 65535',
        '127.0.0.300:80' => 'invalid host in "127.0.0.300:80"',
        '[::1:80' => 'invalid host in "[::1:80"',
        'unix:backend.sock' => 'invalid path in "unix:backend.sock", expected unix:/PATH of at most 107 bytes',
    );
    put('badkeys', (map { ($_ => '') } keys %bad), $first => '');
    list_is('badkeys', ["$first $defaults"], 'the others are not hidden');
    log_has('badkeys', qq{key "upstreams/badkeys/$_": $bad{$_}, skipped}) for sort keys %bad;
    put('badkeys', $second => '');
    list_is('badkeys', ["$second $defaults", "$first $defaults"], 'a later change');
    log_has('badkeys', qq{key "upstreams/badkeys/$_": $bad{$_}, skipped}) for sort keys %bad;
};

subtest 'a bad value leaves the last good parameters, or the defaults' => sub {
    my @bad = (
        ['weight=5' => 'value is no JSON object'],
        ['[1]' => 'value is no JSON object'],
        ['{"weight":65536}' => '"weight" is 65536, expected 0 to 65535'],
        ['{"weight":-1}' => '"weight" is -1, expected 0 to 65535'],
        ['{"weight":"many"}' => '"weight" is \"many\", expected 0 to 65535'],
        ['{"max_fails":1.5}' => '"max_fails" is 1.5, expected 0 to 2147483647'],
        ['{"fail_timeout":"10s"}' => '"fail_timeout" is \"10s\", expected 0 to 2147483647'],
        ['{"weight":3,"down":2}' => '"down" is 2, expected 0 or 1'],
    );
    my ($weight, %seen) = (10);
    for (@bad) {
        my ($value, $reason) = @$_;
        put('badvalues', $first => { weight => ++$weight, max_fails => 7 });
        my $good = "$first weight=$weight max_fails=7 fail_timeout=10s";
        list_is('badvalues', [$good], 'good');
        put('badvalues', $first => $value);
        log_has('badvalues', qq{key "upstreams/badvalues/$first": $reason, $then}, ++$seen{$reason});
        list_is('badvalues', [$good], "after $value");
    }
    put('badvalues', $first => '{', $second => '{"weight":-1}');
    servers_are('badvalues', ["$first weight=$weight max_fails=7 fail_timeout=10s", "$second $defaults"],
        'beside a new one');
    log_has('badvalues', qq{key "upstreams/badvalues/$second": "weight" is -1, expected 0 to 65535, $then});
};

subtest 'weights' => sub {
    put('weights', $first => { weight => 1 }, $second => { weight => 3 }, $third => { weight => 0 });
    servers_are('weights', [map { "$_->[0] weight=$_->[1] max_fails=2 fail_timeout=10s" }
        [$first, 1], [$second, 3], [$third, 0]], 'shown');
    is_deeply(answers('weights', 8), { $first => 2, $second => 6 }, 'by weight; one of weight 0 gets none');
};

subtest 'a backup server' => sub {
    put('backup', $first => '', $second => '{"backup":1}');
    servers_are('backup', ["$first $defaults", "$second $defaults backup"], 'shown');
    is_deeply(answers('backup', 4), { $first => 4 }, 'idle while another serves');
    put('backup', $first => '{"down":1}');
    servers_are('backup', ["$first $defaults down", "$second $defaults backup"], 'the other goes down');
    is_deeply(answers('backup', 4), { $second => 4 }, 'then it serves');
    put('backup', $first => '');
    servers_are('backup', ["$first $defaults", "$second $defaults backup"], 'and comes back');
    is_deeply(answers('backup', 4), { $first => 4 }, 'then no longer');
};

subtest 'an emptied key keeps the list' => sub {
    my $last = 'consul ' . $consul->address . ': no servers under /v1/kv/upstreams/emptied/, ';
    log_has('emptied', $last . 'no list yet');
    put('emptied', $first => '', $second => '');
    servers_are('emptied', ["$first $defaults", "$second $defaults"], 'two');
    $consul->kv_delete('upstreams/emptied/', recurse => 1);
    log_has('emptied', $last . 'keeping the last list (2 servers)');
    servers_are('emptied', ["$first $defaults", "$second $defaults"], 'still two');
    is_deeply(answers('emptied', 2), { $first => 1, $second => 1 }, 'that serve');
    put('emptied', $third => '');
    list_is('emptied', ["$third $defaults"], 'until there is another');
};

subtest 'an emptied key empties the list where that is allowed' => sub {
    is_deeply(answers('empty', 1), { 502 => 1 }, 'at the start');
    put('empty', $first => '');
    list_is('empty', ["$first $defaults"], 'one');
    is_deeply(answers('empty', 1), { $first => 1 }, 'serves');
    delete_keys('empty', $first);
    list_is('empty', [], 'none');
    is(http_get($t->port(0), '/list?empty')->{body}, "Upstream name: empty; Backend server count: 0\n", 'shown');
    is_deeply(answers('empty', 2), { 502 => 2 }, 'no live upstreams');
    put('empty', $second => '');
    list_is('empty', ["$second $defaults"], 'another');
    is_deeply(answers('empty', 1), { $second => 1 }, 'serves');
};

subtest 'the newest is first, and a change keeps the place' => sub {
    my $heavy = 'weight=9 max_fails=2 fail_timeout=10s';
    my @list;
    for (reverse 1 .. 3) {
        put('order', "127.0.0.1:$_" => '');
        unshift @list, "127.0.0.1:$_ $defaults";
        list_is('order', \@list, "127.0.0.1:$_ is new");
    }
    put('order', '127.0.0.1:2' => { weight => 9 });
    list_is('order', ["127.0.0.1:1 $defaults", "127.0.0.1:2 $heavy", "127.0.0.1:3 $defaults"], 'one changed');
    delete_keys('order', '127.0.0.1:2');
    list_is('order', ["127.0.0.1:1 $defaults", "127.0.0.1:3 $defaults"], 'one deleted');
    put('order', '127.0.0.1:2' => '');
    list_is('order', ["127.0.0.1:2 $defaults", "127.0.0.1:1 $defaults", "127.0.0.1:3 $defaults"], 'it is new again');
};

subtest 'a write that changes nothing changes nothing' => sub {
    put('same', $first => { weight => 2 });
    list_is('same', ["$first weight=2 max_fails=2 fail_timeout=10s"], 'one server');
    my $file = $t->testdir . '/same.conf';
    wait_until { $t->read_file('same.conf') =~ /weight=2/ } 5, 'dumped';
    my @before = (stat $file)[1, 9, 10];
    my $version = last_version('same');

    put('same', $first => { weight => 2 });
    put('same', $first => '{ "weight": "2", "unknown": 1 }');
    $consul->kv_put('upstreams/same/folder/', '');
    # This one is seen in the log, and so were those before it.
    put('same', $first => 'bad');
    log_has('same', qq{key "upstreams/same/$first": value is no JSON object, $then});
    is(last_version('same'), $version, 'no other version');
    is_deeply([(stat $file)[1, 9, 10]], \@before, 'the dump file was not touched');

    put('same', $first => { weight => 3 });
    list_is('same', ["$first weight=3 max_fails=2 fail_timeout=10s"], 'a change');
    is(last_version('same'), $version + 1, 'is the next version');
    wait_until { (stat $file)[1] != $before[0] } 5, 'and dumped';
};

subtest 'what is known of a server outlives changes of the list' => sub {
    my $failed = sub { scalar(() = $t->log =~ /connect\(\) failed .* upstream: "http:\/\/\Q$dead\E/g) };
    put('state', $dead => { max_fails => 2, fail_timeout => 60 }, $first => '');
    servers_are('state', ["$dead weight=1 max_fails=2 fail_timeout=60s", "$first $defaults"], 'a dead one and another');
    is_deeply(answers('state', 6), { $first => 6 }, 'each request is answered');
    is($failed->(), 2, 'it failed twice and is left alone');

    put('state', $first => { weight => 2 });
    servers_are('state', ["$dead weight=1 max_fails=2 fail_timeout=60s", "$first weight=2 max_fails=2 fail_timeout=10s"],
        'the other changes');
    answers('state', 6);
    put('state', $second => '');
    wait_until { 3 == (() = servers('state')) } 5, 'another one is added';
    answers('state', 6);
    put('state', $dead => { weight => 5, max_fails => 2, fail_timeout => 60 });
    wait_until { grep { $_ eq "$dead weight=5 max_fails=2 fail_timeout=60s" } servers('state') } 5, 'it changes itself';
    answers('state', 6);
    is($failed->(), 2, 'it is still left alone');

    delete_keys('state', $dead);
    wait_until { 2 == (() = servers('state')) } 5, 'it leaves';
    put('state', $dead => { max_fails => 2, fail_timeout => 60 });
    wait_until { 3 == (() = servers('state')) } 5, 'and comes back';
    answers('state', 9);
    is($failed->(), 4, 'as a new one');
};

subtest 'upsync_interval' => sub {
    # Its key is there since the start: a prefix without keys is told of every write to Consul.
    my @seen = (time);
    for my $server ($second, $third) {
        put('pace', $server => '');
        wait_until { grep { /^\Q$server / } servers('pace') } 5, "$server is new";
        push @seen, time;
    }
    cmp_ok($seen[1] - $seen[0], '<', 0.9, 'a change after a quiet time is not put off');
    cmp_ok($seen[2] - $seen[1], '>', 0.5, 'the next one is');
};

subtest 'host names' => sub {
    my ($port) = $second =~ /:(\d+)$/;
    my ($error, @found) = getaddrinfo('localhost', $port, { socktype => SOCK_STREAM });
    my %localhost = map { /:/ ? ("[$_]:$port" => 1) : ("$_:$port" => 1) }
        map { (getnameinfo($_->{addr}, NI_NUMERICHOST, NIx_NOSERV))[1] } @found;
    servers_are('names', [map { "$_ $defaults" } $first, keys %localhost], 'all addresses of a name, and the other servers');
    $t->log_like(qr/upstream "names": host name "no-such-host\.invalid" does not resolve: .*, left out$/m,
        'a name that does not resolve is told');
    put('names', $third => '');
    wait_until { grep { /^\Q$third / } servers('names') } 5, 'a later change';
};

$t->done;
