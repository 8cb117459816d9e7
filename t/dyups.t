#!/usr/bin/perl

# Lists that are posted, as the clients of ngx_http_dyups_module do it: what is answered, what is
# shown, and who serves.

use strict;
use warnings;

use IO::Socket::IP;
use Socket qw(getaddrinfo getnameinfo NI_NUMERICHOST NI_NUMERICSERV SOCK_STREAM);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $fake = $t->fake_consul;

# The two of the session that dyups' own documentation shows, which say only their port.
my @said = $t->backends(2, location => 'return 200 "$server_port\n";')->ports;

my $ipv6 = IO::Socket::IP->new(LocalHost => '::1', Listen => 1) ? '[::1]:' . $t->free_port : undef;
my $unix = 'unix:' . $t->testdir . '/a.sock';
my ($a, $b, $c, $d, @special) = $t->backends(4, listen => [$unix, $ipv6 // ()])->addresses;
my $dead = '127.0.0.1:' . $t->free_port;

# From 1.29.7 on nginx keeps so many connections without a directive.
my ($minor, $patch) = `${\ Test::Upsync::nginx_binary() } -v 2>&1` =~ m{/1\.(\d+)\.(\d+)};
my $kept = $minor > 29 || $minor == 29 && $patch >= 7 ? 32 : undef;

# Blocks of every kind, with and without a method, each in its order with keepalive and zone.
my $weighted = "server $a weight=3; server $b; server $dead max_fails=1 fail_timeout=60s;";
my %blocks = (
    plain => $weighted,
    spare => "server $dead max_fails=1 fail_timeout=60s; server $a down; server $b backup;",
    least => "least_conn; $weighted",
    by_client => "ip_hash; $weighted",
    by_uri => "hash \$uri; $weighted",
    ring => "hash \$uri consistent; $weighted",
    any_of => "random; $weighted",
    two => "random two least_conn; $weighted",
    kept => "$weighted keepalive 4;",
    zoned => "zone zoned 64k; $weighted",
    least_kept => "least_conn; $weighted keepalive 4;",
    least_zoned => "zone least_zoned 64k; least_conn; $weighted",
    ring_kept_zoned => "zone ring_kept_zoned 128k; hash \$uri consistent; $weighted keepalive 4;",
    client_kept => "$weighted ip_hash; keepalive 4;",
    two_kept_zoned => "$weighted random two; zone two_kept_zoned 64k; keepalive 4;",
    named => "dyups \$http_x_name; hash \$uri; $weighted keepalive 4;",
);
my @blocks = sort keys %blocks;

# Such that have no server of their own.
my %bare = (
    bare_least => 'least_conn;',
    bare_client => 'ip_hash;',
    bare_uri => 'hash $uri;',
    bare_ring => 'hash $uri consistent;',
    bare_random => 'random;',
    bare_two => 'random two;',
    bare_kept => 'keepalive 4;',
    bare_all => 'zone bare_all 64k; least_conn; keepalive 4;',
);

# What may change with a reload.
my %conf = (more => '', without => '');

sub blocks {
    my @names = grep { $_ ne $conf{without} } @blocks;
    my $blocks = join '', map { "upstream $_ { $blocks{$_} }\n" } @names;
    my $locations = join '', map { "location /block/$_/ { proxy_pass http://$_; }\n" } @names;
    return ($blocks, $locations);
}

sub configure {
    %conf = (%conf, @_);
    my ($blocks, $locations) = blocks();
    $blocks .= join '', map { "upstream $_ { dyups \$http_x_name; $bare{$_} }\n" } sort keys %bare;
    $locations .= join '', map { "location /block/$_/ { proxy_pass http://$_; }\n" } sort keys %bare;
    $t->write_file_expand('nginx.conf', <<"CONF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    default_type text/html;
    add_header X-Backend \$upstream_addr always;
    add_header X-Pid \$pid always;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    upstream Any { dyups \$host; server $d; }
    upstream bare { dyups \$host; }
    upstream full { dyups \$http_host; server $d; }
    upstream by_name { dyups \$http_x_name; server $d; }
    upstream prepared {
        server $a weight=2 max_fails=3 fail_timeout=1m max_conns=7;
        server $b backup;
    }
    upstream followed {
        upsync %%CONSUL%%/v1/kv/followed/ upsync_type=consul upsync_interval=20ms;
    }
    $blocks
    $conf{more}
    server {
        # A socket for each worker: the kernel then spreads connections over them.
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location / { proxy_pass http://\$host; }
        location /port/ { proxy_pass http://\$http_host; }
        location /any/ { proxy_pass http://any; }
        location /bare/ { proxy_pass http://bare; }
        location /full/ { proxy_pass http://full; }
        location /by_name/ { proxy_pass http://by_name; }
        location /prepared/ { proxy_pass http://prepared; }
        location /followed/ { proxy_pass http://followed; }
        location /address/ { proxy_pass http://$a; }
        $locations
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
    server {
        listen 127.0.0.1:%%PORT_2%% reuseport;
        location /dyups/ { dyups_interface; }
    }
}
CONF
}

configure();
my ($traffic, $interface, $prefixed) = map { $t->port($_) } 0 .. 2;

# Code and text of an answer of the interface.
sub told {
    my ($method, $path, $body, %opt) = @_;
    my $answer = http($method, $opt{port} // $interface, $path, body => $body, timeout => 20, %opt);
    return "$answer->{status} $answer->{body}";
}

sub post { my ($name, $body, %opt) = @_; return told('POST', "/upstream/$name", $body, %opt) }

sub shown { return told('GET', "/upstream/$_[0]") }

sub servers { return join '', '200 ', map { "server $_\n" } @_ }

# Who answers requests over new connections: the address, or the code.
sub who {
    my ($uri, $number, %opt) = @_;
    return map { answerer(http_get($traffic, $uri, %opt)) } 1 .. $number;
}

sub answerer {
    my $answer = shift;
    return $answer->{error} // $answer->{status} if $answer->{error} || $answer->{status} != 200;
    return $answer->{body} =~ /^hello world by (\S+)$/ ? $1 : $answer->{body};
}

# Who answers on each of the workers; a test that all agree.
sub all_workers_ask {
    my ($uri, $expected, $name, %opt) = @_;
    my %said = map { $_ => {} } $t->workers;
    my $until = time + 10;
    while (time < $until && grep { !keys %$_ } values %said) {
        my $answer = http_get($traffic, $uri, %opt);
        $said{ $answer->{headers}{'x-pid'} // 'none' }{ answerer($answer) } = 1;
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\%said, { map { $_ => { $expected => 1 } } keys %said }, $name);
}

sub counts { my %counts; $counts{$_}++ for @_; return \%counts }

# Each change is one line of the log.
sub logged {
    my ($mark, $text, $name) = @_;
    my @lines = grep { /\[notice\].* upsync: upstream/ } split /\n/, $t->log($mark);
    s/^.*?upsync: //, s/\d+ of \d+ pages free/N of N pages free/ for @lines;
    # Earlier lists of a block count.
    s/version \d+/version N/ for grep { !/^upstream "x"/ } @lines;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(join("\n", @lines), $text, $name);
}

$fake->reply_kv(5, { "followed/$c" => { weight => 2, max_fails => 4, fail_timeout => 20 } }, path => '/v1/kv/followed/');
$t->run;
wait_until { $t->workers == 2 } 10, 'two workers';
wait_until { (who('/followed/', 1))[0] eq $c } 10, 'Consul is followed';

subtest 'a block without a posted list is as nginx alone has it' => sub {
    my ($blocks, $locations) = map { s/dyups \$http_x_name;//r } blocks();
    my $globals = $t->globals(module => 0);
    my $alone = $t->another_nginx(<<"CONF");
$globals
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    add_header X-Backend \$upstream_addr always;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    $blocks
    server {
        listen 127.0.0.1:%%PORT_3%% reuseport;
        $locations
    }
}
CONF
    $alone->run;
    # One worker serves a connection, and its state is as yet untouched.
    my @connections = map { http_connect($_) } $traffic, $t->port(3);
    for my $block (@blocks) {
        # 200 picks miss none of three servers.
        my $is_random = $blocks{$block} =~ /random/;
        my ($with, $without) = map {
            my $connection = $_;
            [ map { http_get(0, "/block/$block/$_", connection => $connection)->{headers}{'x-backend'} }
                1 .. ($is_random ? 200 : 12) ];
        } @connections;
        ($with, $without) = map { my %seen = map { (/(\S+)$/)[0] => 1 } @$_; [ sort keys %seen ] } $with, $without
            if $is_random;
        is_deeply($with, $without, $block) || diag explain $with, $without;
        cmp_ok(scalar(keys %{ counts(@$with) }), '>', $block =~ /client|spare/ ? 0 : 1, "$block: by turns");
    }
    ok($alone->stop, 'the other nginx ends');
};

# `curl -d` sends this.
sub curl_d {
    my ($url, $body) = @_;
    if (my ($curl) = grep { -x } map { "$_/curl" } split /:/, $ENV{PATH}) {
        open my $pipe, '-|', $curl, '-s', '-d', $body, $url or die "curl: $!\n";
        my $answer = do { local $/; <$pipe> };
        close $pipe;
        return $answer;
    }
    my ($port, $path) = $url =~ m{:(\d+)(/.*)} or die $url;
    return http('POST', $port, $path, body => $body, headers => {
        Accept => '*/*', 'User-Agent' => 'curl/7.88.1', 'Content-Type' => 'application/x-www-form-urlencoded',
    })->{body};
}

subtest 'the session of dyups' => sub {
    for my $way (['proxy_pass http://$host', '/'], ['dyups $host', '/bare/']) {
        for my $place ([$interface, '', 'location /'], [$prefixed, '/dyups', 'location /dyups/']) {
            my ($by, $uri) = @$way;
            my ($port, $prefix, $where) = @$place;
            my $ask = sub { http_get($traffic, $uri, host => 'dyhost') };
            like($ask->()->{raw}, qr{^HTTP/1.1 502 Bad Gateway\r\n.*<h1>502 Bad Gateway</h1>}s, "$by, $where: 502 first");
            is(curl_d("127.0.0.1:$port$prefix/upstream/dyhost", "server 127.0.0.1:$said[1];server 127.0.0.1:$said[0];"),
                'success', 'success');
            is($ask->()->{body}, "$said[1]\n", 'the first');
            is($ask->()->{body}, "$said[0]\n", 'the second');
            is($ask->()->{body}, "$said[1]\n", 'in turn');
            is(told('DELETE', "$prefix/upstream/dyhost", undef, port => $port), '200 success', 'deleted');
            all_workers_ask($uri, 502, '502 again, of every worker', host => 'dyhost');
        }
    }
};

subtest 'what is shown' => sub {
    is(post('x1', "server $a;\nserver $b weight=5 max_fails=2 fail_timeout=1m max_conns=9 backup;\nserver $c down;"),
        '200 success', 'posted');
    is(post('X0.a-b_c', "server $d;"), '200 success', 'another');
    my @configured = (qw(Any bare full by_name prepared followed), @blocks, sort keys %bare);
    my @names = (@configured, 'x0.a-b_c', 'x1');
    is(told('GET', '/list'), join('', '200 ', map { "$_\n" } @names), 'list: as in nginx.conf, then by name');

    my %detail = map { $_ => details($blocks{$_}) } @blocks;
    my $fallback = "server $d weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=0\n";
    @detail{qw(Any bare full by_name x0.a-b_c), keys %bare} = ($fallback, '', ($fallback) x 3, ('') x keys %bare);
    $detail{prepared} = "server $a weight=2 max_conns=7 max_fails=3 fail_timeout=60 backup=0 down=0\n"
        . "server $b weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=1 down=0\n";
    $detail{followed} = "server $c weight=2 max_conns=0 max_fails=4 fail_timeout=20 backup=0 down=0\n";
    $detail{x1} = "server $a weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=0\n"
        . "server $b weight=5 max_conns=9 max_fails=2 fail_timeout=60 backup=1 down=0\n"
        . "server $c weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=1\n";
    is(told('GET', '/detail'), join('', '200 ', map { "$_\n$detail{$_}\n" } @names), 'detail');

    is(shown('x1'), servers($a, $b, $c), 'upstream');
    is(shown('X1'), servers($a, $b, $c), 'in whatever case');
    is(shown('x0.A-B_c'), servers($d), 'also where it was posted in another');
    is(shown('any'), servers($d), 'a block, also');
    is(shown('prepared'), servers($a, $b), 'with all its servers');
    is(shown('unknown'), '404 ', 'an unknown one');
    for my $path ('/list', '/detail', '/upstream/x1', '/upstream/unknown') {
        my $answer = http_get($interface, $path);
        is($answer->{headers}{'content-type'}, undef, "$path: no type");
        is($answer->{headers}{'content-length'}, length $answer->{body}, "$path: length");
        is(http_get($prefixed, "/dyups$path")->{body}, $answer->{body}, "$path: the same below a prefix");
    }
    is(told('DELETE', "/upstream/$_"), '200 success', "$_ goes") for 'x0.a-B_c', 'X1';
    is(told('GET', '/list'), join('', '200 ', map { "$_\n" } @configured), 'as before');
};

# The lines of `detail` for the servers of a block of this test.
sub details {
    my $text = '';
    for (shift =~ /server (.*?);/g) {
        my ($server) = split ' ';
        my %given = (weight => 1, max_conns => 0, max_fails => 1, fail_timeout => 10, backup => 0, down => 0);
        $given{$1} = $2 while /(\w+)=(\d+)/g;
        $given{$1} = 1 while /\b(backup|down)\b/g;
        my @order = qw(weight max_conns max_fails fail_timeout backup down);
        $text .= join(' ', "server $server", map { "$_=$given{$_}" } @order) . "\n";
    }
    return $text;
}

subtest 'JSON' => sub {
    my $before = time - 1;
    is(post('x1', "server $a;server $b weight=5 max_fails=2 fail_timeout=1m max_conns=9 backup;server $c down;"),
        '200 success', 'posted');
    my @ways = ([''], ['?format=json'], ['?a=b&format=JSON'], ['', Accept => 'text/html, application/json;q=0.5']);
    for my $way (@ways) {
        my ($query, %headers) = @$way;
        my $is_json = $query || %headers;
        for my $path ('/list', '/detail', '/upstream/x1') {
            my $type = http_get($interface, $path . $query, headers => \%headers)->{headers}{'content-type'};
            is($type, $is_json ? 'application/json' : undef, "$path$query @{[ %headers ]}");
        }
    }
    my $get = sub { json(http_get($interface, "$_[0]?format=json")->{body}) };
    # An answer may be with the client before nginx has given its connection back.
    wait_until { !grep { $_->{connections} } map { @{ $_->{servers} } } values %{ $get->('/detail')->{upstreams} } } 10,
        'no requests under way';
    my @names = (qw(Any bare full by_name prepared followed), @blocks, sort(keys %bare), 'x1');
    is_deeply($get->('/list'), { upstreams => \@names }, 'list');

    http_get($traffic, '/', host => 'x1') for 1 .. 3;
    my $x1;
    wait_until { $x1 = $get->('/upstream/x1'); !$x1->{servers}[0]{connections} } 10, 'three requests';
    my ($false, $true) = (JSON::PP::false, JSON::PP::true);
    my %plain = (weight => 1, max_fails => 1, fail_timeout => 10, max_conns => 0, slow_start => 0, drain => $false, critical => $false,
        connections => 0, requests => 0, failures => 0);
    my $since = delete $x1->{since};
    is_deeply($x1, {
        name => 'x1', source => 'api', version => 1, keepalive => $kept, servers => [
            { %plain, server => $a, backup => $false, down => $false, requests => 3 },
            { %plain, server => $b, backup => $true, down => $false, weight => 5, max_fails => 2, fail_timeout => 60, max_conns => 9 },
            { %plain, server => $c, backup => $false, down => $true },
        ],
    }, 'upstream') || diag explain $x1;
    my ($year, $month, $day, $hour, $minute, $second) = ($since // '') =~ /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d\.\d{3})Z$/;
    ok($year, "since when: $since") or return;
    require Time::Local;
    my $posted = Time::Local::timegm(0, $minute, $hour, $day, $month - 1, $year) + $second;
    ok($posted >= $before && $posted <= time + 1, 'which is right');

    my $detail = $get->('/detail')->{upstreams};
    is_deeply([ sort keys %$detail ], [ sort @names ], 'detail has all');
    is_deeply($detail->{x1}, { %$x1, since => $since }, 'each as it is alone');
    is_deeply({ map { $_ => $detail->{$_}{source} } @names },
        { (map { $_ => 'config' } @names), followed => 'consul', x1 => 'api' }, 'and where it comes from');
    is_deeply({ map { $_ => $detail->{$_}{keepalive} } qw(kept least_kept plain Any) },
        { kept => 4, least_kept => 4, plain => $kept, Any => $kept }, 'and what it keeps');
    is($detail->{plain}{servers}[0]{weight}, 3, 'a block has its parameters');
    is(scalar(grep { !ref($_->{backup}) || !ref($_->{down}) || !ref($_->{drain}) } map { @{ $_->{servers} } } values %$detail), 0, 'flags are flags');
    is(told('GET', '/upstream/unknown?format=json'), '404 {"status":404,"msg":"upstream unknown not found"}', 'unknown');

    is(post('x1?format=json', "server $a;"), '200 {"status":200}', 'changed');
    is($get->('/upstream/x1')->{version}, 2, 'the version counts');
    is(post('x1?format=json', "server $a;"), '200 {"status":200}', 'not changed');
    is($get->('/upstream/x1')->{version}, 2, 'changes only');
    is(told('DELETE', '/upstream/x1?format=json'), '200 {"status":200}', 'deleted');
};

subtest 'every kind of server' => sub {
    my %kinds = (IPv4 => $a, unix => $unix, $ipv6 ? (IPv6 => $ipv6) : ());
    for my $kind (sort keys %kinds) {
        is(post('kind', "server $kinds{$kind};"), '200 success', "$kind: posted");
        is(shown('kind'), servers($kinds{$kind}), "$kind: shown");
        all_workers_ask('/', $kinds{$kind}, "$kind: serves", host => 'kind');
    }
    note 'no IPv6 here' unless $ipv6;
    is(post('kind', join ' ', map { "server $_;" } values %kinds), '200 success', 'all of them');
    is_deeply(counts(who('/', 4 * keys %kinds, host => 'kind')), { map { $_ => 4 } values %kinds }, 'serve alike');

    my ($port) = $a =~ /:(\d+)/;
    my (undef, @found) = getaddrinfo('localhost', $port, { socktype => SOCK_STREAM });
    my %resolved;
    for (@found) {
        my (undef, $host) = getnameinfo($_->{addr}, NI_NUMERICHOST | NI_NUMERICSERV);
        $resolved{ $host =~ /:/ ? "[$host]:$port" : "$host:$port" } = 1;
    }
    is(post('kind', "server LocalHost:$port max_fails=0;"), '200 success', 'a host name');
    my @shown = shown('kind') =~ /server (\S+)$/mg;
    is_deeply([ sort @shown ], [ sort keys %resolved ], 'is its addresses');
    all_workers_ask('/', $a, 'and serves', host => 'kind');
    is(post('kind', 'server 127.0.0.1;server [::1];'), '200 success', 'without a port');
    is(shown('kind'), servers('127.0.0.1:80', '[::1]:80'), 'it is 80');

    is(post('kind', "server $a;server $b;server $a weight=7;"), '200 success', 'one twice');
    is(shown('kind'), servers($a, $b), 'is one');
    is(told('DELETE', '/upstream/kind'), '200 success', 'deleted');
};

subtest 'a host is switched to a prepared group' => sub {
    my $parameters = sub { (http_get($interface, '/detail')->{body} =~ /^switched\n(.*?)\n\n/ms)[0] };
    is(post('switched', "server $unix;"), '200 success', 'a socket');
    is_deeply([ who('/any/', 2, host => 'switched') ], [ ($unix) x 2 ], 'serves');
    is(post('switched', "server $c;"), '200 success', 'an address');
    is_deeply([ who('/any/', 2, host => 'switched') ], [ ($c) x 2 ], 'serves');
    is(post('switched', 'server upstream:Prepared;'), '200 success', 'a group of nginx.conf');
    is_deeply([ who('/any/', 2, host => 'switched') ], [ ($a) x 2 ], 'serves, its backup does not');
    is($parameters->(), "server $a weight=2 max_conns=7 max_fails=3 fail_timeout=60 backup=0 down=0\n"
        . "server $b weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=1 down=0", 'with its parameters');
    is(post('switched', "server upstream:prepared max_conns=0 fail_timeout=5; server $b; server $c;"), '200 success', 'and others');
    is($parameters->(), "server $a weight=2 max_conns=0 max_fails=3 fail_timeout=5 backup=0 down=0\n"
        . "server $b weight=1 max_conns=0 max_fails=1 fail_timeout=5 backup=1 down=0\n"
        . "server $c weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=0", 'with parameters that are given');

    is(post('switched', 'server upstream:followed;'), '200 success', 'a group that Consul feeds');
    is_deeply([ who('/', 2, host => 'switched') ], [ ($c) x 2 ], 'serves');
    is($parameters->(), "server $c weight=2 max_conns=0 max_fails=4 fail_timeout=20 backup=0 down=0", 'as Consul has it');
    $fake->reply_kv(6, { "followed/$d" => {} }, path => '/v1/kv/followed/');
    wait_until { shown('followed') eq servers($d) } 10, 'Consul says something else';
    is(shown('switched'), servers($c), 'a group is what it was when it was posted');
    is(post('switched', 'server upstream:followed;'), '200 success', 'posted again');
    is(shown('switched'), servers($d), 'it is what it is now');

    is(post('plain', "server $c;"), '200 success', 'a group that was posted itself');
    is(post('switched', 'server upstream:plain;'), '200 success', 'is one');
    is(shown('switched'), servers($c), 'as posted');
    is(told('DELETE', '/upstream/plain'), '200 success', 'one that was deleted');
    is(post('switched', "server $a;\n server upstream:plain;"),
        '400 add server failed: line 2, column 2: upstream "plain" has no servers', 'is none');
    is(post('switched', 'server upstream:bare;'), '400 add server failed: line 1, column 1: upstream "bare" has no servers',
        'nor is one without servers');
    is(post('switched', 'server upstream:switched;'),
        '400 add server failed: line 1, column 1: upstream "switched" is not in nginx.conf', 'nor one made at run time');
    is(shown('switched'), servers($c), 'nothing changed');
    is(told('POST', '/upstream/plain/reset'), '200 success', 'reset');
    is(told('DELETE', '/upstream/switched'), '200 success', 'deleted');
};

subtest 'names' => sub {
    is(post('name:8080', "server $a;"), '200 success', 'a name with a port');
    is(post('Name', "server $b;"), '200 success', 'and without');
    is(post('name:81', "server $c;"), '200 success', 'another port');
    for (['name:8080', $a], ['NAME:8080', $a], ['name', $b], ['nAmE', $b], ['name:81', $c], ['name:82', 502]) {
        my ($host, $expected) = @$_;
        all_workers_ask('/port/', $expected, "proxy_pass http://\$http_host: $host", host => $host);
        all_workers_ask('/full/', $expected eq 502 ? $d : $expected, "dyups \$http_host: $host", host => $host);
        all_workers_ask('/', $b, "proxy_pass http://\$host: $host has no port", host => $host);
        all_workers_ask('/any/', $b, "dyups \$host: $host has no port", host => $host);
    }
    is(shown('NAME:8080'), servers($a), 'shown');
    is(told('DELETE', '/upstream/name:8080'), '200 success', 'deleted');
    is_deeply([ who('/port/', 2, host => 'name:8080') ], [ 502, 502 ], 'that alone');
    is_deeply([ who('/port/', 2, host => 'name:81') ], [ $c, $c ], 'the others stay');

    # proxy_pass itself comes to none of these.
    my $longest = 'n' x 255;
    for my $name ('name:http', 'name:0', 'name:65536', 'a:1:2', ':', '...', '-', '_dyups_upstream_sandbox_', $longest) {
        my $label = length $name > 99 ? 'the longest' : $name;
        is(post($name, "server $a;"), '200 success', "$label: posted");
        all_workers_ask('/by_name/', $a, "$label: found by a variable", headers => { 'X-Name' => uc $name });
        is(told('DELETE', "/upstream/$name"), '200 success', "$label: deleted");
        all_workers_ask('/by_name/', $d, "$label: the block's own serve", headers => { 'X-Name' => $name });
    }
    is(told('DELETE', "/upstream/$_"), '200 success', "$_: deleted") for 'name', 'name:81';

    for my $names (['both', 'both:80'], ['too:80', 'too']) {
        my ($host) = $names->[0] =~ /^(\w+)/;
        is(post($_, 'server ' . (/:/ ? $b : $a) . ';'), '200 success', "$_: posted") for @$names;
        all_workers_ask('/port/', $a, "$host: found without a port", host => $host);
        all_workers_ask('/port/', $b, "$host:80: found with it", host => "$host:80");
        is(told('DELETE', "/upstream/$_"), '200 success', "$_: deleted") for @$names;
    }

    all_workers_ask('/port/', $a, 'an address that proxy_pass has elsewhere', host => $a);
    is(post($a, "server $b;"), '200 success', 'is a name like others');
    all_workers_ask('/port/', $b, 'which is found', host => $a);
    all_workers_ask('/address/', $a, 'proxy_pass with the address itself is as it was');
    is(told('DELETE', "/upstream/$a"), '200 success', 'deleted');
    all_workers_ask('/port/', $a, 'and so is the other', host => $a);
    all_workers_ask('/address/', $a, 'as at first');
};

subtest 'a block of a variable alone, with whatever method' => sub {
    for my $block (sort keys %bare) {
        my $uri = "/block/$block/";
        all_workers_ask($uri, 502, "$block: no servers", headers => { 'X-Name' => 'lone' });
        is(shown($block), '204 ', "$block: none shown");
        is(post('lone', "server $a;server $b;"), '200 success', "$block: posted for the name");
        shared($block, { $a => 4, $b => 4 }, "$block: served", who($uri, 8, headers => { 'X-Name' => 'lone' }));
        is(post($block, "server $c;"), '200 success', "$block: posted for the block");
        all_workers_ask($uri, $c, "$block: served", headers => { 'X-Name' => 'other' });
        is(told('DELETE', '/upstream/lone'), '200 success', "$block: deleted for the name");
        is(told('DELETE', "/upstream/$block"), '200 success', "$block: and for the block");
        all_workers_ask($uri, 502, "$block: no servers", headers => { 'X-Name' => 'lone' });
        is(told('POST', "/upstream/$block/reset"), '200 success', "$block: reset");
        all_workers_ask($uri, 502, "$block: still none", headers => { 'X-Name' => 'lone' });
    }
};

subtest 'what a block falls back on' => sub {
    my $ask = sub { all_workers_ask('/any/', $_[0], $_[1], host => 'fall') };
    $ask->($d, 'its own server first');
    is(post('fall', "server $a;"), '200 success', 'posted for the name');
    $ask->($a, 'that serves');
    is(post('any', "server $b;"), '200 success', 'posted for the block');
    $ask->($a, 'the name counts');
    is(told('DELETE', '/upstream/fall'), '200 success', 'the name goes');
    $ask->($b, 'then the block');
    is(told('DELETE', '/upstream/any'), '200 success', 'deleted');
    $ask->(502, 'then nobody');
    is(post('fall', "server $a;"), '200 success', 'posted for the name');
    $ask->($a, 'that serves');
    is(told('POST', '/upstream/ANY/reset'), '200 success', 'back to nginx.conf');
    is(told('DELETE', '/upstream/fall'), '200 success', 'the name goes');
    $ask->($d, 'as at first');

    # A client does not come to an upstream of nginx.conf, which may be for others, by its name.
    all_workers_ask('/any/', $d, 'a name that nginx.conf has is no list', host => 'plain');
    is(post('plain', "server $c;"), '200 success', 'nor when one was posted');
    all_workers_ask('/any/', $d, 'the block falls back', host => 'plain');
    all_workers_ask('/block/plain/', $c, 'the list serves where the configuration has the name');
    is(told('DELETE', '/upstream/plain'), '200 success', 'deleted');
    all_workers_ask('/any/', $d, 'nor then', host => 'plain');
    is(told('POST', '/upstream/plain/reset'), '200 success', 'reset');
};

# How requests are shared, by the method of the block.
sub shared {
    my ($block, $expected, $name, @who) = @_;
    my $counts = counts(@who);
    my $text = $blocks{$block} // $bare{$block};
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    # One client asks for one URI.
    return is_deeply([ map { $expected->{$_} ? 'one' : $_ } keys %$counts ], ['one'], "$name: one server")
        if $text =~ /hash/;
    return is_deeply($counts, $expected, $name) unless $text =~ /random|least_conn/;
    # The last answer may be with the client before nginx has given its connection back: who has the
    # least is not known here. And random is random.
    return is(join(' ', grep { !$expected->{$_} } keys %$counts), '', $name) if $text =~ /random/;
    return is_deeply([ sort keys %$counts ], [ sort keys %$expected ], $name);
}

subtest 'an upstream of nginx.conf is posted, deleted and reset' => sub {
    for my $block (@blocks) {
        my $path = "/upstream/$block";
        my @own = $blocks{$block} =~ /server (\S+?)[ ;]/g;
        my $variable = sub { who('/', $_[0], host => $block) };
        my $static = sub { who("/block/$block/", $_[0]) };
        my $is_own = sub { !grep { $_ ne $a && $_ ne $b } $static->(6), $variable->(6) };
        ok($is_own->(), "$block: its own servers");

        is(told('POST', $path, "server $c;server $d weight=2;"), '200 success', "$block: posted");
        shared($block, { $c => 4, $d => 8 }, "$block: static follows", $static->(12));
        shared($block, { $c => 4, $d => 8 }, "$block: by variable", $variable->(12));
        is(shown($block), servers($c, $d), "$block: shown");
        is(told('PUT', $path, "server $d;"), '200 success', "$block: PUT");
        all_workers_ask("/block/$block/", $d, "$block: replaced");

        is(told('DELETE', $path), '200 success', "$block: deleted");
        all_workers_ask("/block/$block/", 502, "$block: nobody serves");
        all_workers_ask('/', 502, "$block: by variable", host => $block);
        is(shown($block), '404 ', "$block: not shown");
        unlike(told('GET', '/list'), qr/^\Q$block\E$/m, "$block: not listed");
        is(told('DELETE', $path), '404 not found uptream', "$block: gone is gone");
        is(told('PATCH', "$path/server/$a", 'down'), '404 not found uptream', "$block: with its servers");

        is(told('POST', $path, "server $c;"), '200 success', "$block: posted again");
        all_workers_ask("/block/$block/", $c, "$block: that serves");
        is(told('DELETE', $path), '200 success', "$block: deleted again");
        is(told('POST', "$path/reset"), '200 success', "$block: reset");
        ok($is_own->(), "$block: its own servers");
        is(shown($block), servers(@own), "$block: shown");
        is(told('POST', "$path/reset"), '200 success', "$block: once more");
        ok($is_own->(), "$block: changes nothing");
    }
    is(told('POST', '/upstream/unknown/reset'), '404 upstream "unknown" is not in nginx.conf',
        'any other has nothing to go back to');
};

subtest 'one that Consul feeds' => sub {
    my $shown = sub { told('GET', '/upstream/followed?format=json') =~ s/"(?:connections|requests)":\d+//gr };
    my $before = $shown->();
    for my $change (
        ['POST', '', "server $a;"], ['PUT', '', "server $a;"], ['POST', '', qq({"servers":[{"host":"127.0.0.1","port":1}]})],
        ['DELETE', ''], ['POST', '/reset'], ['POST', '/server', "server $a;"], ['DELETE', "/server/$d"],
        ['PATCH', "/server/$d", 'down'], ['PATCH', '/server/1.1.1.1:1', 'down'],
    ) {
        my ($method, $path, $body) = @$change;
        my $text = 'upstream "followed" follows Consul, change it there';
        my $json = JSON::PP->new->encode($text);
        is(told($method, "/upstream/Followed$path", $body),
            ($body // '') =~ /^{/ ? qq(409 {"status":409,"msg":$json}) : "409 $text", "$method $path");
        is(told($method, "/upstream/followed$path?format=json", $body), qq(409 {"status":409,"msg":$json}), 'as JSON');
    }
    is($shown->(), $before, 'nothing changed');
    all_workers_ask('/followed/', $d, 'it serves on');
    $fake->reply_kv(7, { "followed/$c" => {} }, path => '/v1/kv/followed/');
    wait_until { shown('followed') eq servers($c) } 10, 'and follows on';
};

subtest 'single servers' => sub {
    my $plain = 'max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=0';
    my $is = sub {
        my ($name, $text, @servers) = @_;
        my ($shown) = http_get($interface, '/detail')->{body} =~ /^$name\n(.*?)^\n/ms;
        is($shown, join('', map { "server $_\n" } @servers), $text);
    };
    is(told('POST', '/upstream/single/server', "server $a;"), '404 not found uptream', 'there has to be a list');
    is(post('single', "server $a weight=2 max_fails=3;"), '200 success', 'a list of one');
    is(told('POST', '/upstream/single/server', "server $b weight=4 fail_timeout=5 down;"), '200 success', 'one more');
    my @two = ("$a weight=2 max_conns=0 max_fails=3 fail_timeout=10 backup=0 down=0",
        "$b weight=4 max_conns=0 max_fails=1 fail_timeout=5 backup=0 down=1");
    $is->('single', 'goes to the end', @two);
    is(told('POST', '/upstream/single/server', "server $a weight=1;"), '200 success', 'one that is there');
    $is->('single', 'changes in its place', "$a weight=1 $plain", $two[1]);
    is(told('PATCH', "/upstream/single/server/$b", 'down=off weight=1'), '200 success', 'PATCH');
    $is->('single', 'changes what it gives', "$a weight=1 $plain", "$b weight=1 $plain" =~ s/=10/=5/r);
    is_deeply(counts(who('/', 8, host => 'single')), { $a => 4, $b => 4 }, 'both serve');
    is(told('PATCH', "/upstream/single/server/$b", ' weight=3 ; # more of it'), '200 success', 'PATCH, as a statement');
    is_deeply(counts(who('/', 8, host => 'single')), { $a => 2, $b => 6 }, 'counts at once');
    is(told('PATCH', "/upstream/single/server/$b", '{"weight":1,"fail_timeout":"10","down":true}'),
        '200 {"status":200}', 'PATCH, JSON');
    $is->('single', 'is the same', "$a weight=1 $plain", "$b weight=1 $plain" =~ s/down=0/down=1/r);
    is(told('PATCH', "/upstream/single/server/$b", 'down=off backup=on max_conns=2'), '200 success', 'all flags');
    is(told('PATCH', "/upstream/single/server/$b", 'backup=off max_conns=0 max_fails=1'), '200 success', 'and back');
    $is->('single', 'is as before', "$a weight=1 $plain", "$b weight=1 $plain");

    my ($host, $port) = split /:/, $c;
    is(told('PUT', '/upstream/single/server', qq({"host":"$host","port":$port,"weight":2})),
        '200 {"status":200}', 'one more, JSON');
    is(told('POST', '/upstream/single/server', "server $unix;"), '200 success', 'a socket');
    is(told('POST', '/upstream/single/server', 'server [::1]:81;'), '200 success', 'IPv6');
    is(told('POST', '/upstream/single/server', 'server 127.0.0.9;'), '200 success', 'no port');
    my @all = ($a, $b, $c, $unix, '[::1]:81', '127.0.0.9:80');
    is(shown('single'), servers(@all), 'all are there');
    for my $address ('127.0.0.9', '%5b::1%5D%3a81', "/$unix", $c, $a) {
        is(told('DELETE', "/upstream/single/server/$address"), '200 success', 'one goes: ' . $address =~ s/.*(?=a\.sock)//r);
        my %gone = ('127.0.0.9' => '127.0.0.9:80', '%5b::1%5D%3a81' => '[::1]:81', "/$unix" => $unix);
        @all = grep { $_ ne ($gone{$address} // $address) } @all;
        is(shown('single'), servers(@all), 'the others stay');
    }
    all_workers_ask('/', $b, 'the last serves alone', host => 'single');
    is(told('DELETE', "/upstream/single/server/$b"),
        '409 upstream "single" has no other server, remove it whole with DELETE /upstream/single', 'it cannot go alone');
    is(told('DELETE', "/upstream/single/server/$a"), '404 not found server', 'one that is not there');
    is(told('PATCH', "/upstream/single/server/$a", 'down'), '404 not found server', 'nor can be changed');
    is(shown('single'), servers($b), 'nothing changed');
    is(told('DELETE', '/upstream/single'), '200 success', 'all of it goes');
    is(told($_->[0], "/upstream/single/server$_->[1]", $_->[2]), '404 not found uptream', "$_->[0]: gone is gone")
        for ['DELETE', "/$b"], ['PATCH', "/$b", 'down'], ['POST', '', "server $b;"];

    # What nginx.conf has, for a block with a method, as it changes.
    is(told('POST', '/upstream/least/server', "server $c weight=4;"), '200 success', 'one more for a block');
    is(shown('least'), servers($a, $b, $dead, $c), 'its own stay');
    is(told('PATCH', "/upstream/least/server/$a", 'down'), '200 success', 'PATCH for a block');
    is(told('DELETE', "/upstream/least/server/$dead"), '200 success', 'DELETE for a block');
    $is->('least', 'with their parameters', "$a weight=3 $plain" =~ s/down=0/down=1/r, "$b weight=1 $plain", "$c weight=4 $plain");
    shared('least', { $b => 2, $c => 8 }, 'serve', who('/block/least/', 10));
    is(told('POST', '/upstream/least/reset'), '200 success', 'reset');
    is(shown('least'), servers($a, $b, $dead), 'as in nginx.conf');
    is(shown('bare'), '204 ', 'a block without any');
    is(told('POST', '/upstream/bare/server', "server $c;"), '200 success', 'takes one');
    is(shown('bare'), servers($c), 'is its only one');
    is(told('POST', '/upstream/bare/reset'), '200 success', 'reset');
};

subtest 'slow_start and drain' => sub {
    my $shown = sub { (http_get($interface, '/detail')->{body} =~ /^slow\n(.*?)^\n/ms)[0] };
    my $json = sub {
        my $servers = json(http_get($interface, '/upstream/slow?format=json')->{body})->{servers};
        return { map { $_->{server} => [ $_->{slow_start}, $_->{drain} ? 'drain' : () ] } @$servers };
    };
    my $rest = 'weight=1 max_conns=0 max_fails=1 fail_timeout=10 backup=0 down=0';
    is(post('slow', "server $a slow_start=30s;\nserver $b drain;server $c slow_start=1500ms drain;server $d slow_start=0;"),
        '200 success', 'posted');
    is($shown->(), "server $a $rest slow_start=30s\nserver $b $rest drain=1\nserver $c $rest slow_start=1500ms drain=1\n"
        . "server $d $rest\n", 'shown behind the others');
    is_deeply($json->(), { $a => [30], $b => [ 0, 'drain' ], $c => [ 1.5, 'drain' ], $d => [0] }, 'JSON');
    like(http_get($interface, '/upstream/slow?format=json')->{body}, qr/"slow_start":1\.5,/, 'as a number');
    # It is the first list: there is none that they could join.
    is_deeply(counts(who('/', 20, host => 'slow')), { $a => 10, $d => 10 }, 'one that drains gets no new clients');

    is(told('PATCH', "/upstream/slow/server/$a", 'drain'), '200 success', 'PATCH drain');
    all_workers_ask('/', $d, 'goes', host => 'slow');
    is(told('PATCH', "/upstream/slow/server/$d", 'drain=on slow_start=1m500ms'), '200 success', 'PATCH drain=on');
    all_workers_ask('/', 502, 'so does the last', host => 'slow');
    is_deeply($json->()->{$d}, [ 60.5, 'drain' ], 'shown');
    is(told('PATCH', "/upstream/slow/server/$d", 'drain=off slow_start=0'), '200 success', 'PATCH drain=off');
    all_workers_ask('/', $d, 'comes back', host => 'slow');
    is(told('PATCH', "/upstream/slow/server/$c", '{"drain":false,"slow_start":0}'), '200 {"status":200}', 'PATCH, JSON');
    is_deeply(counts(who('/', 20, host => 'slow')), { $c => 10, $d => 10 }, 'is the same');
    is(told('PATCH', "/upstream/slow/server/$c", '{"drain":"1","slow_start":"500ms"}'), '200 {"status":200}', 'PATCH, JSON with texts');
    is_deeply($json->()->{$c}, [ 0.5, 'drain' ], 'shown');
    is(told('POST', '/upstream/slow/server', "server $b slow_start=2h;"), '200 success', 'one alone');
    is_deeply($json->()->{$b}, [7200], 'is replaced');
    is(told('DELETE', '/upstream/slow'), '200 success', 'deleted');

    my @hosts = map { [ split /:/ ] } $a, $b;
    is(post('slow', '{"servers":[' . join(',', map { qq({"host":"$_->[0]","port":$_->[1],"slow_start":20,"drain":true}) } @hosts)
        . ']}'), '200 {"status":200}', 'JSON');
    is_deeply($json->(), { map { $_ => [ 20, 'drain' ] } $a, $b }, 'JSON: shown');
    is(told('DELETE', '/upstream/slow'), '200 success', 'deleted');
};

subtest 'the method of a body' => sub {
    my $method = sub { json(http_get($interface, "/upstream/$_[0]?format=json")->{body})->{method} };
    my $list = "server $a;server $b;server $c;";
    # One client, one URI: with those of a key one server is asked, whatever the worker.
    my @methods = ('least_conn', 'ip_hash', 'hash $arg_k', 'hash $arg_k consistent', 'hash ${arg_k}-$host', 'random',
        'random two', 'random two least_conn', 'random two least_time=header', 'random two least_time=last_byte',
        'least_time header', 'least_time last_byte');
    for my $text (@methods) {
        my $expected = $text eq 'random two' ? 'random two least_conn' : $text;
        for my $name ('mine', 'plain', 'ring') {
            my $uri = $name eq 'mine' ? '/' : "/block/$name/";
            my $body = $name eq 'plain' ? "$text;$list" : "$list\n  $text  ;\n";
            is(post($name, $body), '200 success', "$name: $text");
            is($method->($name), $expected, 'is shown');
            my @who = map { who("$uri?k=$_", 6, host => 'mine') } 1 .. 4;
            is(scalar(grep { $_ ne $a && $_ ne $b && $_ ne $c } @who), 0, 'all served');
            if ($text =~ /hash/) {
                is(scalar(keys %{ counts(@who[ 6 * $_ .. 6 * $_ + 5 ]) }), 1, 'a key has one server') for 0 .. 3;
            } elsif ($text =~ /least_conn$/ && $text !~ /random/) {
                is_deeply([ sort keys %{ counts(@who) } ], [ sort $a, $b, $c ], 'idle servers have turns');
            }
        }
    }
    # A change of a part keeps it.
    is(post('mine', "hash \$arg_k consistent;$list"), '200 success', 'a hash');
    is(told('PATCH', "/upstream/mine/server/$a", 'weight=2'), '200 success', 'PATCH');
    is($method->('mine'), 'hash $arg_k consistent', 'keeps it');
    is(told('POST', '/upstream/mine/server', "server $d;"), '200 success', 'POST of one');
    is($method->('mine'), 'hash $arg_k consistent', 'keeps it');
    is(told('DELETE', "/upstream/mine/server/$d"), '200 success', 'DELETE of one');
    is($method->('mine'), 'hash $arg_k consistent', 'keeps it');
    my %all = map { ("?k=$_" => (who("/?k=$_", 1, host => 'mine'))[0]) } 1 .. 30;
    is(scalar(keys %{ counts(values %all) }), 3, 'keys have all servers');
    ok($t->reload, 'a reload');
    is($method->('mine'), 'hash $arg_k consistent', 'keeps it');
    is_deeply({ map { ("?k=$_" => (who("/?k=$_", 1, host => 'mine'))[0]) } 1 .. 30 }, \%all, 'and who serves whom');

    is(post('mine', $list), '200 success', 'a list without');
    is($method->('mine'), undef, 'has none');
    is_deeply(counts(who('/?k=1', 12, host => 'mine')), { $a => 4, $b => 4, $c => 4 }, 'takes turns');
    is(post('ring', $list), '200 success', 'for a block with a method');
    is($method->('ring'), undef, 'none of its own');
    is(scalar(keys %{ counts(who('/block/ring/', 12)) }), 1, 'has the method of the block');
    is(post('ring', "random;$list"), '200 success', 'one with another');
    is(told('POST', '/upstream/ring/reset'), '200 success', 'reset');
    is($method->('ring'), undef, 'none of its own again');
    is(scalar(keys %{ counts(who('/block/ring/', 12)) }), 1, 'the method of the block again');
    is(told('POST', '/upstream/plain/reset'), '200 success', 'reset');
    is_deeply(counts(who('/block/plain/', 8)), { $a => 6, $b => 2 }, 'and turns again');

    # A name made at run time that a block finds by its variable has the method of the block.
    my @named = (headers => { 'X-Name' => 'mine' });
    is(scalar(keys %{ counts(who('/block/bare_uri/', 12, @named)) }), 1, 'a list without, by way of a block that hashes');
    is(post('mine', "upsync_lb roundrobin;$list"), '200 success', 'a list that is to have turns');
    is($method->('mine'), 'upsync_lb roundrobin', 'says so');
    is_deeply(counts(who('/block/bare_uri/', 12, @named)), { $a => 4, $b => 4, $c => 4 }, 'and has them');
    is(post('mine', "server $a;server $b;upsync_lb local 10.0.0.0/8 127.0.0.1;server $unix;"), '200 success', 'one with networks');
    is($method->('mine'), 'upsync_lb local 10.0.0.0/8 127.0.0.1/32', 'shown');
    is_deeply(counts(who('/', 9, host => 'mine')), { $a => 3, $b => 3, $unix => 3 }, 'those of them');
    is(post('mine', "server $a;server $b;upsync_lb local 10.0.0.0/8;server $unix;"), '200 success', 'one with others');
    is_deeply(counts(who('/', 9, host => 'mine')), { $unix => 9 }, 'a socket is of this machine');

    # A method is that of its list: who takes servers over does not take it.
    is(post('plain', "hash \$arg_k;$list"), '200 success', 'a group with a method');
    is(post('mine', 'server upstream:plain;'), '200 success', 'is taken over');
    is($method->('mine'), undef, 'without it');
    is(post('mine', 'server upstream:plain; least_conn;'), '200 success', 'or with another');
    is($method->('mine'), 'least_conn', 'which is that of the list');
    is(told('POST', '/upstream/plain/reset'), '200 success', 'reset');
    is(told('DELETE', '/upstream/mine'), '200 success', 'deleted');

    # Names made at run time have the template's, where they have none of their own.
    configure(more => 'dyups_upstream template; upstream template { dyups $http_x_name; hash $arg_k; }');
    ok($t->reload, 'a template with a method');
    is(post('mine', $list), '200 success', 'a list');
    is(scalar(keys %{ counts(who("/?k=$_", 6, host => 'mine')) }), 1, 'has its method') for 1 .. 4;
    is(post('mine', "hash \$arg_other consistent;$list"), '200 success', 'a list with another');
    is(scalar(keys %{ counts(map { who("/?k=1&other=$_", 1, host => 'mine') } 1 .. 30) }), 3, 'has its own');
    is(told('DELETE', '/upstream/mine'), '200 success', 'deleted');
    configure(more => '');
    ok($t->reload, 'without it again');
};

subtest 'changes at the same time' => sub {
    my @ports = 2001 .. 2060;
    my $all = sub {
        my ($method, $path, $body) = @_;
        my (@connections, %said);
        for my $port (@ports) {
            my ($uri, $text) = map { s/PORT/$port/gr } $path, $body;
            my $connection = http_connect($interface);
            $connection->send("$method $uri HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($text) . "\r\n\r\n$text");
            push @connections, $connection;
        }
        $said{"$_->{status} $_->{body}"}++ for map { $_->receive($method, 30) } @connections;
        return \%said;
    };
    # A long list, so that each change takes its time.
    my @others = map { "127.0.0.2:$_" } 1 .. 3000;
    is(post('busy', join '', map { "server $_;" } @others), '200 success', 'a list');
    is_deeply($all->('POST', '/upstream/busy/server', 'server 127.0.0.1:PORT;'), { '200 success' => 60 }, '60 servers, one by one');
    my @shown = shown('busy') =~ /127\.0\.0\.1:(\d+)$/mg;
    is_deeply([ sort @shown ], \@ports, 'none is lost');
    is_deeply($all->('PATCH', '/upstream/busy/server/127.0.0.1:PORT', 'weight=PORT'), { '200 success' => 60 }, 'all of them changed');
    my ($detail) = http_get($interface, '/detail')->{body} =~ /^busy\n(.*?)^\n/ms;
    is_deeply({ $detail =~ /127\.0\.0\.1:(\d+) weight=(\d+)/g }, { map { $_ => $_ } @ports }, 'no change is lost');
    is_deeply($all->('DELETE', '/upstream/busy/server/127.0.0.1:PORT', ''), { '200 success' => 60 }, 'all of them gone');
    is(shown('busy'), servers(@others), 'the others stay');
    is_deeply($all->('POST', '/upstream/busy', 'server 127.0.0.1:PORT;'), { '200 success' => 60 }, '60 lists');
    like(shown('busy'), qr/^200 server 127\.0\.0\.1:20[0-6]\d\n$/, 'one of them is left');
    is_deeply($all->('POST', '/upstream/busy-PORT', "server $a;"), { '200 success' => 60 }, '60 names');
    all_workers_ask('/', $a, "$_ serves", host => "busy-$_") for @ports[ 0, 59 ];
    is_deeply($all->('DELETE', '/upstream/busy-PORT', ''), { '200 success' => 60 }, 'all of them gone');
    is_deeply($all->('DELETE', '/upstream/busy', ''), { '200 success' => 1, '404 not found uptream' => 59 }, 'one deletes');
};

subtest 'each change is a line of the log' => sub {
    my $by = '127.0.0.1';
    my $free = 'N of N pages free';
    for (
        ['POST', 'x', "server $a;server $b;", "2 servers (2 added, 0 removed, 0 changed), version 1, $free, posted by"],
        ['POST', 'x', "server $a weight=2;server $c;", "2 servers (1 added, 1 removed, 1 changed), version 2, $free, posted by"],
        ['POST', 'x/server', "server $b;", "3 servers (1 added, 0 removed, 0 changed), version 3, $free, posted by"],
        ['PATCH', "x/server/$b", 'down', "3 servers (0 added, 0 removed, 1 changed), version 4, $free, posted by"],
        ['DELETE', "x/server/$b", undef, "2 servers (0 added, 1 removed, 0 changed), version 5, $free, posted by"],
        ['PUT', 'x', "server $a;", "1 server (0 added, 1 removed, 1 changed), version 6, $free, posted by"],
        ['DELETE', 'X', undef, "no servers, $free, deleted by"],
        ['POST', 'Plain', "server $c;", "1 server (1 added, 0 removed, 0 changed), version N, $free, posted by"],
        ['DELETE', 'plain', undef, "no servers, $free, deleted by"],
        ['POST', 'plain/reset', undef, "back to nginx.conf, $free, reset by"],
        ['DELETE', 'x', undef, ''], ['POST', 'x', 'server', ''], ['POST', 'followed', "server $a;", ''],
    ) {
        my ($method, $path, $body, $text) = @$_;
        my $mark = $t->log_mark;
        my $answer = told($method, "/upstream/$path", $body);
        my ($name) = lc($path) =~ /^(\w+)/;
        if ($text eq '') {
            unlike($answer, qr/^200/, "$method $path: refused");
            logged($mark, '', 'no line');
        } else {
            is($answer, '200 success', "$method $path");
            logged($mark, qq{upstream "$name": $text $by}, 'one line');
        }
    }
};

subtest 'a reload' => sub {
    $blocks{made} = "server $a;";
    is(post('stays', "server $a weight=2;server $c;"), '200 success', 'a list');
    is(post('made', "server $c;"), '200 success', 'another');
    is(post('plain', "server $d;"), '200 success', 'one for a block');
    is(told('DELETE', '/upstream/kept'), '200 success', 'a block without servers');
    is(told('DELETE', '/upstream/zoned'), '200 success', 'and another');
    my $get = sub { http_get($interface, '/upstream/stays?format=json')->{body} };
    my $before = $get->();
    ok($t->reload, 'reload');
    is($get->(), $before, 'the list is the same, with its version and time');
    is_deeply(counts(who('/', 12, host => 'stays')), { $a => 8, $c => 4 }, 'and serves');
    all_workers_ask('/block/plain/', $d, 'so does that of a block');
    all_workers_ask('/block/kept/', 502, 'a deleted block is');
    is(shown('kept'), '404 ', 'and not there');

    push @blocks, 'made';
    configure(without => 'zoned');
    ok($t->reload, 'a reload that has a name in nginx.conf, and another not any more');
    all_workers_ask('/block/made/', $c, 'the list counts');
    is(shown('made'), servers($c), 'and is shown');
    is(() = told('GET', '/list') =~ /^made$/mg, 1, 'once');
    is(told('POST', '/upstream/made/reset'), '200 success', 'reset');
    all_workers_ask('/block/made/', $a, 'the servers of nginx.conf');

    is(shown('zoned'), '404 ', 'a deleted block that is no more has no servers');
    unlike(told('GET', '/list'), qr/^zoned$/m, 'and is not listed');
    is(told('POST', '/upstream/zoned/reset'), '404 upstream "zoned" is not in nginx.conf', 'nor can be reset');
    is(told('DELETE', '/upstream/zoned'), '404 not found uptream', 'nor deleted');
    all_workers_ask('/', 502, 'nobody serves', host => 'zoned');
    all_workers_ask('/any/', $d, 'a block falls back', host => 'zoned');
    is(post('zoned', "server $b;"), '200 success', 'it can be posted');
    all_workers_ask('/', $b, 'and serves', host => 'zoned');
    is(told('DELETE', '/upstream/zoned'), '200 success', 'and goes');
    configure(without => '');
    ok($t->reload, 'a reload that has it again');
    is(shown('zoned'), servers($a, $b, $dead), 'its servers are those of nginx.conf');

    configure(more => "upstream stays { upsync %%CONSUL%%/v1/kv/followed/ upsync_type=consul upsync_interval=20ms; }");
    ok($t->reload, 'a reload that lets a name follow Consul');
    wait_until { shown('stays') eq servers($c) } 10, 'it follows';
    is(post('stays', "server $a;"), '409 upstream "stays" follows Consul, change it there', 'and cannot be posted');
    configure(more => '');
    ok($t->reload, 'no more');
    is(post('stays', "server $a;"), '200 success', 'and can again');
    all_workers_ask('/', $a, 'that serves', host => 'stays');
    is(told('DELETE', "/upstream/$_"), '200 success', "$_ goes") for qw(stays plain);
    is(told('POST', "/upstream/$_/reset"), '200 success', "$_ is back") for qw(plain kept);
};

subtest 'keepalive of a template' => sub {
    my $keepalive = sub {
        my ($name, $body) = @_;
        my $answer = http('POST', $interface, "/upstream/$name", body => $body);
        return "$answer->{body} " . ($answer->{headers}{'x-keepalive'} // 'none');
    };
    if ($kept) {
        is($keepalive->($_, "server $a;\n keepalive 20;"), "success $kept", "$_: what nginx keeps by itself") for qw(x plain);
        is(told('DELETE', '/upstream/x'), '200 success', 'deleted');
        is(told('POST', '/upstream/plain/reset'), '200 success', 'reset');
    } else {
        is(post('x', "server $a;\n keepalive 20;"), '400 add server failed: line 2, column 2: '
            . '"keepalive" needs an upstream of nginx.conf that has it, named by "dyups_upstream"', 'none');
        is(post('plain', "server $a;\n keepalive 20;"), '400 add server failed: line 2, column 2: '
            . '"keepalive" needs "keepalive" in the block of upstream "plain" in nginx.conf', 'nor in a block');
        is(shown('plain') . shown('x'), servers($a, $b, $dead) . '404 ', 'nothing changed');
    }
    is($keepalive->('kept', "server $a;keepalive 20;"), 'success 4', 'a block that has it: the answer says what is in force');
    is($keepalive->('kept', "server $a;"), 'success none', 'to who asks');
    is(told('POST', '/upstream/kept/reset'), '200 success', 'reset');

    configure(more => "dyups_upstream Template; upstream template { dyups \$http_x_name; server $d; keepalive 16; }");
    ok($t->reload, 'a template');
    is($keepalive->('x', "server $a;keepalive 20;"), 'success 16', 'a name made at run time');
    is(json(http_get($interface, '/upstream/x?format=json')->{body})->{keepalive}, 16, 'shown');
    is($keepalive->('template', "server $a;keepalive 65535;"), 'success 16', 'the template itself');
    like($keepalive->('plain', "server $a;keepalive 20;"), qr/^add server failed: .* none$/, 'a block that has none') unless $kept;
    all_workers_ask('/', $a, 'it serves', host => 'x');
    is(told('DELETE', "/upstream/$_"), '200 success', "$_: deleted") for 'x', 'template';
    all_workers_ask('/', 502, 'template: 502', host => 'template');
    all_workers_ask('/', 502, 'x: 502', host => 'x');
    configure(more => '');
    ok($t->reload, 'without it again');
};

subtest 'no upstream at all, and no variable for one' => sub {
    my $other = $t->another_nginx(<<'CONF');
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    server {
        listen 127.0.0.1:%%PORT_4%% reuseport;
        location / { proxy_pass http://$host; }
        location /dyups { dyups_interface; }
        location /static { proxy_pass http://%%BACKEND_2%%; }
    }
}
CONF
    $other->run;
    my $on = sub { told(@_[ 0 .. 2 ], port => $t->port(4)) };
    is($on->('GET', '/dyups/list'), '204 ', 'list');
    is($on->('GET', '/dyups/detail'), '204 ', 'detail');
    is($on->('GET', '/dyups/upstream/x'), '404 ', 'upstream');
    is($on->('GET', '/dyups/list?format=json'), '200 {"upstreams":[]}', 'list as JSON');
    is($on->('GET', '/dyups/detail?format=json'), '200 {"upstreams":{}}', 'detail as JSON');
    is($on->('POST', '/dyups/upstream/x', "server $a;"), '200 success', 'one is made');
    is($on->('GET', '/dyups/list'), "200 x\n", 'shown');
    is(answerer(http_get($t->port(4), '/', host => 'x')), $a, 'and serves');
    is(answerer(http_get($t->port(4), '/static')), $a, 'a server without upstream serves too');
    is($on->('DELETE', '/dyups/upstream/x'), '200 success', 'it goes');
    is($on->('GET', '/dyups/list'), '204 ', 'nothing is left');
    is(answerer(http_get($t->port(4), '/', host => 'x')), 502, 'nobody serves');
    ok($other->stop, 'ends');
};

# [what it is, a part of http {}, the message]: the message is about the line that has "#!".
subtest 'mistakes in nginx.conf are told' => sub {
    my %places = (http => '%s', server => "server {\n%s\n}", location => "server { location / {\n%s\n} }",
        upstream => "upstream app {\n%s\nserver 127.0.0.1:1;\n}");
    my $upsync = 'upsync 127.0.0.1:8500/v1/kv/app/ upsync_type=consul';
    my $duplicate = 'directive is duplicate, expected it once';
    my $arguments = sub { qq{invalid number of arguments in "$_[0]" directive} };
    for (
        [location => 'dyups_interface write; #!', 'invalid parameter "write" in "dyups_interface", expected "read" or none'],
        [location => 'dyups_interface ""; #!', 'invalid parameter "" in "dyups_interface", expected "read" or none'],
        [location => 'dyups_interface read read; #!', $arguments->('dyups_interface')],
        [location => "dyups_interface;\ndyups_interface; #!", qq{"dyups_interface" $duplicate in a location}],
        [location => "dyups_interface read;\ndyups_interface; #!", qq{"dyups_interface" $duplicate in a location}],
        [upstream => 'dyups; #!', $arguments->('dyups')],
        [upstream => 'dyups $host $uri; #!', $arguments->('dyups')],
        [upstream => 'dyups name; #!', 'no variable in "name" of "dyups", expected one such as $host'],
        [upstream => 'dyups ""; #!', 'no variable in "" of "dyups", expected one such as $host'],
        [upstream => "dyups \$host;\ndyups \$host; #!", qq{"dyups" $duplicate in an upstream}],
        [upstream => 'dyups $; #!', 'invalid variable name'],
        (map { [upstream => $_, '"dyups" and "upsync" are in the same upstream, expected one of them: a list is posted or follows its source'] }
            "dyups \$host;\n$upsync; #!", "$upsync;\ndyups \$host; #!"),
        [upstream => 'dyups $nosuch;', 'unknown "nosuch" variable'],
        [http => 'dyups_upstream; #!', $arguments->('dyups_upstream')],
        [http => 'dyups_upstream a b; #!', $arguments->('dyups_upstream')],
        [http => "dyups_upstream a;\ndyups_upstream a; #!", qq{"dyups_upstream" $duplicate}],
        [http => "upstream a { server 127.0.0.1:1; }\ndyups_upstream b;",
            'no upstream "b" for "dyups_upstream", expected the name of an "upstream" block in NGINX_CONF:END'],
        [http => "dyups_upstream \"\";",
            'no upstream "" for "dyups_upstream", expected the name of an "upstream" block in NGINX_CONF:END'],
        [http => "server { location / { proxy_pass http://127.0.0.1:1; } }\ndyups_upstream 127.0.0.1;",
            'no upstream "127.0.0.1" for "dyups_upstream", expected the name of an "upstream" block in NGINX_CONF:END'],
        [http => 'dyups_state_path; #!', $arguments->('dyups_state_path')],
        [http => 'dyups_state_path ""; #!', 'empty path in "dyups_state_path", expected a folder'],
        [http => "dyups_state_path a;\ndyups_state_path a; #!", qq{"dyups_state_path" $duplicate}],
        (map { [http => "$_; #!", $arguments->($_)], [http => "$_ a b; #!", $arguments->($_)] }
            qw(dyups_shm_zone_size dyups_read_msg_timeout dyups_trylock dyups_read_msg_log dyups_upstream_conf)),
        (map { my $place = $_; map { [$place => "$_ x; #!", qq{"$_" directive is not allowed here}] }
            qw(dyups_upstream dyups_state_path dyups_trylock) } qw(server location upstream)),
        (map { [$_ => 'dyups_interface; #!', '"dyups_interface" directive is not allowed here'] } qw(http server upstream)),
        (map { [$_ => 'dyups $host; #!', '"dyups" directive is not allowed here'] } qw(http server location)),
    ) {
        my ($place, $text, $message) = @$_;
        my $block = sprintf $places{$place}, $text;
        my $conf = $t->expand("%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n$block\n}\n");
        my $file = $t->testdir . '/test/nginx.conf';
        my $end = $conf =~ tr/\n//;
        $message =~ s/NGINX_CONF:END/$file:$end/;
        $message .= " in $file:" . (1 + (substr($conf, 0, $-[0]) =~ tr/\n//)) if $conf =~ /#!/;
        my ($status, $output) = $t->nginx_t($conf);
        is("$status @{[ $output =~ /^nginx: \[emerg\] (.*)$/mg ]}", "1 $message", "$place: $text" =~ s/\n/ /r);
    }
};

subtest 'what dyups had and is not needed is told' => sub {
    my %why = (
        dyups_shm_zone_size => 'the size of shared memory is that of "upsync_zone"',
        dyups_read_msg_timeout => 'all workers see a change at once',
        dyups_trylock => 'nobody waits for a lock',
        dyups_read_msg_log => 'no messages pass between workers',
        dyups_upstream_conf => 'lists outlive a restart by "dyups_state_path"',
    );
    my $conf = $t->expand("%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n");
    my ($line, $expected) = (1 + $conf =~ tr/\n//, '');
    for my $name (sort keys %why) {
        $conf .= "$name on;\n";
        $expected .= qq{"$name" has no effect: $why{$name} in } . $t->testdir . '/test/nginx.conf:' . $line++ . "\n";
    }
    my ($status, $output) = $t->nginx_t("$conf}\n");
    is($status, 0, 'accepted');
    is(join('', map { "$_\n" } $output =~ /^nginx: \[warn\] (.*)$/mg), $expected, 'with a warning each');
    unlike($output, qr/\[(?:emerg|alert|crit|error)\]/, 'and no more');
};

$t->done;
