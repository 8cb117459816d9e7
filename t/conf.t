#!/usr/bin/perl

# The directives: what is accepted, and what each mistake is told.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
mkdir $t->testdir . '/test';
$t->write_file('test/servers.conf', <<'EOF');
server 127.0.0.1:9000 weight=1 fail_timeout=10 max_fails=3;
server 127.0.0.1:9001 weight=1 fail_timeout=10s max_fails=3 backup;
EOF
$t->write_file('test/mime.types', "types { text/html html; }\n");

# [what it is, a part of http {}, the message]. The message is about the line that has "#!", if
# one has it; one about a whole upstream names the line where its block begins. All that is written about an upstream stands in "upstream app {}".
sub refused {
    my ($name, $http, $message) = @_;
    my $conf = $t->expand("%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n$http\n}\n");
    if ($conf =~ /#!/) {
        my $line = 1 + (substr($conf, 0, $-[0]) =~ tr/\n//);
        $message .= ' in ' . $t->testdir . "/test/nginx.conf:$line";
    } elsif ($message =~ /^upsync: upstream "(\S+)"/ && $conf =~ /^\s*upstream \Q$1\E \{/m) {
        my $line = 1 + (substr($conf, 0, $+[0]) =~ tr/\n//);
        $message .= ' in ' . $t->testdir . "/test/nginx.conf:$line";
    }
    my ($status, $output) = $t->nginx_t($conf);
    my @emerg = $output =~ /^nginx: \[emerg\] (.*)$/mg;
    is("$status @emerg", "1 $message", $name);
    unlike($output, qr/s3cr3t/, "$name: no token is shown") if $http =~ /s3cr3t/;
    return;
}

sub accepted {
    my ($name, $http) = @_;
    my ($status, $output) = $t->nginx_t("%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n$http\n}\n");
    my @complaints = $output =~ /^nginx: (\[(?:emerg|alert|crit|error|warn)\].*)$/mg;
    is("$status @complaints", '0 ', $name);
    return;
}

# All of them in one file; only if that is not good, each alone.
sub all_accepted {
    my ($name, %upstreams) = @_;
    my @names = sort keys %upstreams;
    my $number = 0;
    my @status = $t->nginx_t(join "\n", '%%TEST_GLOBALS%%', 'events {}', 'http {', '%%TEST_GLOBALS_HTTP%%',
        (map { 'upstream app' . $number++ . " {\n$upstreams{$_}\n}" } @names), '}');
    if ($status[0] == 0 && $status[1] !~ /\[(?:emerg|alert|crit|error|warn)\]/) {
        return pass("$name: " . join ', ', @names);
    }
    accepted($_, upstream($upstreams{$_})) for @names;
    return fail("$name: all in one file") || diag($status[1]);
}

sub upstream { return "upstream app {\n$_[0]\n}" }

my $upsync = 'upsync 127.0.0.1:8500/v1/kv/upstreams/app/ upsync_type=consul';
my $one_of = 'expected upsync_type=consul, consul_services or consul_health';
my $address = 'expected HOST[:PORT]/PATH such as 127.0.0.1:8500/v1/kv/upstreams/app/';
my $known = 'expected upsync_type=, upsync_interval=, upsync_timeout=, strong_dependency= or allow_empty=';
my $pause = 'expected a time such as 5s or 500ms';
my $bound = 'expected a time of at least 100ms such as 6m';

subtest 'a mistake in "upsync" is told with its place and what would be right' => sub {
    my @table = (
        ['no argument', 'upsync;', 'invalid number of arguments in "upsync" directive'],
        ['no type', 'upsync 127.0.0.1:8500/v1/kv/a/;', qq{no "upsync_type" in "upsync", $one_of}],
        ['etcd', 'upsync 127.0.0.1:2379/v2/keys/a/ upsync_type=etcd;',
            'invalid upsync_type "etcd", expected consul, consul_services or consul_health in "upsync"'],
        ['an empty type', 'upsync 127.0.0.1:8500/v1/kv/a/ upsync_type=;',
            'invalid upsync_type "", expected consul, consul_services or consul_health in "upsync"'],
        ['an interval that is no time', "$upsync upsync_interval=often;",
            qq{invalid time "often" in "upsync_interval" of "upsync", $pause}],
        ['an empty interval', "$upsync upsync_interval=;",
            qq{invalid time "" in "upsync_interval" of "upsync", $pause}],
        ['a negative interval', "$upsync upsync_interval=-1s;",
            qq{invalid time "-1s" in "upsync_interval" of "upsync", $pause}],
        ['a time-out that is no time', "$upsync upsync_timeout=6x;",
            qq{invalid time "6x" in "upsync_timeout" of "upsync", $bound}],
        ['a time-out of 0', "$upsync upsync_timeout=0;",
            qq{invalid time "0" in "upsync_timeout" of "upsync", $bound}],
        ['a time-out that overflows', "$upsync upsync_timeout=99999999999999999999s;",
            qq{invalid time "99999999999999999999s" in "upsync_timeout" of "upsync", $bound}],
        ['a flag that is neither on nor off', "$upsync strong_dependency=yes;",
            'invalid value "yes" in "strong_dependency" of "upsync", expected on or off'],
        ['an empty flag', "$upsync allow_empty=;",
            'invalid value "" in "allow_empty" of "upsync", expected on or off'],
        ['an unknown parameter', "$upsync weight=1;", qq{unknown parameter "weight" in "upsync", $known}],
        ['a parameter without value', "$upsync strong_dependency;",
            'invalid value "" in "strong_dependency" of "upsync", expected on or off'],
        ['an unknown parameter without value', "$upsync backup;", qq{unknown parameter "backup" in "upsync", $known}],
        (map {
            my ($name) = /^(\w+)/;
            ["$name twice", "$upsync $_ $_;", qq{duplicate parameter "$name" in "upsync", expected it once}]
        } 'upsync_interval=5s', 'upsync_timeout=6m', 'strong_dependency=off', 'allow_empty=off'),
        ['upsync_type twice', "$upsync upsync_type=consul;",
            'duplicate parameter "upsync_type" in "upsync", expected it once'],
        ['"upsync" twice', "$upsync;\n$upsync;",
            '"upsync" directive is duplicate, expected one source in an upstream'],
    );
    for (@table) {
        my ($name, $text, $message) = @$_;
        refused($name, upstream("$text #!"), $message);
    }
};

subtest 'an address that is none' => sub {
    for (
        '127.0.0.1:8500', '127.0.0.1', '/v1/kv/a/', ':8500/v1/kv/a/', '127.0.0.1:0/v1/kv/a/',
        '127.0.0.1:65536/v1/kv/a/', '127.0.0.1:http/v1/kv/a/', '127.0.0.1:/v1/kv/a/', '127.0.0.300:8500/v1/kv/a/',
        '::1:8500/v1/kv/a/', '[::1:8500/v1/kv/a/', '[::x]:8500/v1/kv/a/', 'a..b:8500/v1/kv/a/', 'a b:8500/v1/kv/a/',
        'https://127.0.0.1:8501/v1/kv/a/', 'unix:/run/consul.sock', 'unix:/run/consul.sock/v1/kv/a/',
    ) {
        refused($_, upstream(qq{upsync "$_" upsync_type=consul; #!}), qq{invalid address "$_" in "upsync", $address});
    }
};

subtest 'a path that does not fit its type' => sub {
    my %expected = (
        consul => '/v1/kv/PREFIX/',
        consul_services => '/v1/catalog/service/NAME',
        consul_health => '/v1/health/service/NAME',
    );
    my @table = (
        [consul => '/', '/v1/kv/', '/v1/kv//a/', '/v1/catalog/service/a', '/v1/health/service/a', '/v2/keys/a/'],
        [consul_services => '/v1/kv/a/', '/v1/health/service/a', '/v1/catalog/service/', '/v1/catalog/service/a/b'],
        [consul_health => '/v1/kv/a/', '/v1/catalog/service/a', '/v1/health/service/', '/v1/health/service/a/'],
    );
    for (@table) {
        my ($type, @paths) = @$_;
        refused("$type $_", upstream("upsync 127.0.0.1:8500$_ upsync_type=$type; #!"),
            qq{upsync_type=$type expects the path $expected{$type}, not "$_" in "upsync"}) for @paths;
    }
    refused('a blank', upstream('upsync "127.0.0.1:8500/v1/kv/a b/" upsync_type=consul; #!'),
        q{invalid character ' ' in path "/v1/kv/a b/", write it percent-encoded in "upsync"});
    refused("the argument $_", upstream("upsync 127.0.0.1:8500/v1/kv/a/?dc=x&$_ upsync_type=consul; #!"),
        'argument "' . (/(\w+)/)[0] . '" is not allowed in the path in "upsync"')
        for 'index=5', 'wait=1s', 'raw', 'keys', 'separator=/';
};

subtest 'no message has a token' => sub {
    my @table = (
        ['no path', '127.0.0.1:8500?token=s3cr3t', '', qq{invalid address "127.0.0.1:8500" in "upsync", $address}],
        ['bad port', '127.0.0.1:x/v1/kv/a/?token=s3cr3t', '',
            qq{invalid address "127.0.0.1:x/v1/kv/a/" in "upsync", $address}],
        ['bad path', '127.0.0.1:8500/v1/a/?token=s3cr3t', '',
            'upsync_type=consul expects the path /v1/kv/PREFIX/, not "/v1/a/" in "upsync"'],
        ['bad character', '127.0.0.1:8500/v1/kv/a/?token=s3cr3t%22"', '',
            q{invalid character '"' in path "/v1/kv/a/", write it percent-encoded in "upsync"}],
        ['bad argument', '127.0.0.1:8500/v1/kv/a/?token=s3cr3t&index=1', '',
            'argument "index" is not allowed in the path in "upsync"'],
        ['bad parameter', '127.0.0.1:8500/v1/kv/a/?token=s3cr3t', 'x=y', qq{unknown parameter "x" in "upsync", $known}],
    );
    for (@table) {
        my ($name, $target, $parameter, $message) = @$_;
        refused($name, upstream("upsync '$target' upsync_type=consul $parameter; #!"), $message);
    }
    my ($status, $output) = $t->nginx_t("events {}\nhttp { upstream app {\n$upsync token=s3cr3t;\n} }\n"
        =~ s/^/$t->globals . "\n"/er);
    is($status, 1, 'a token that is a parameter of "upsync" is refused');
    unlike($output, qr/s3cr3t/, 'but not shown');
};

subtest 'the other directives' => sub {
    my $once = 'directive is duplicate, expected it once';
    my @table = (
        ['two dump files', upstream("upsync_dump_path a;\nupsync_dump_path b; #!"), qq{"upsync_dump_path" $once}],
        ['a dump file without a name', upstream('upsync_dump_path ""; #!'),
            'empty path in "upsync_dump_path", expected a file'],
        ['no dump file', upstream('upsync_dump_path; #!'), 'invalid number of arguments in "upsync_dump_path" directive'],
        ['two methods', upstream("upsync_lb roundrobin;\nupsync_lb roundrobin; #!"), qq{"upsync_lb" $once}],
        ['another method', upstream("upsync_lb local;\nupsync_lb least_conn; #!"), qq{"upsync_lb" $once}],
        ['two zones', "upsync_zone 1m;\nupsync_zone 2m; #!", qq{"upsync_zone" $once}],
        (map {
            ["a zone of $_", "upsync_zone $_; #!", qq{invalid size "$_" in "upsync_zone", expected a size such as 8m}]
        } '1g', 'x', '-1m', '1.5m', '8mm', '99999999999999999999m'),
        (map {
            ["a zone of $_", "upsync_zone $_; #!",
                qq{size "$_" in "upsync_zone" is out of range, expected 128k to 32768m}]
        } '0', '127k', '131071', '32769m', '8796093022207m'),
        ['two bounds of the answer', upstream("upsync_max_body 1m;\nupsync_max_body 1m; #!"), qq{"upsync_max_body" $once}],
        ['two of them in http', "upsync_max_body 1m;\nupsync_max_body 1m; #!", qq{"upsync_max_body" $once}],
        (map {
            ["a bound of $_", upstream("upsync_max_body $_; #!"),
                qq{invalid size "$_" in "upsync_max_body", expected a size such as 32m}]
        } '0', 'x', '-1'),
        ['upstream_show with an argument', 'server { location / { upstream_show on; #!' . "\n} }",
            'invalid number of arguments in "upstream_show" directive'],
    );
    refused(@$_) for @table;
};

subtest 'a directive in the wrong place' => sub {
    my %places = (http => '%s', server => "server {\n%s\n}", location => "server { location / {\n%s\n} }",
        upstream => "upstream app {\n%s\n}");
    my @table = (
        ["$upsync;", qw(http server location)],
        ['upsync_dump_path a;', qw(http server location)],
        ['upsync_lb roundrobin;', qw(http server location)],
        ['upsync_zone 1m;', qw(upstream server location)],
        ['upsync_max_body 1m;', qw(server location)],
        ['upstream_show;', qw(http server upstream)],
        # nginx's own, which the module looks at.
        ['keepalive 1;', qw(http server)],
        ['hash $uri;', qw(http location)],
    );
    for (@table) {
        my ($directive, @wrong) = @$_;
        my ($name) = $directive =~ /(\w+)/;
        refused("$name in $_", sprintf($places{$_}, "$directive #!"), qq{"$name" directive is not allowed here})
            for @wrong;
    }
};

subtest 'two upstreams with one dump file' => sub {
    my $full = $t->testdir . '/test/app.conf';
    for (['app.conf', 'app.conf'], ['app.conf', $full], [$full, 'app.conf'], [$full, './app.conf']) {
        my ($first, $second) = @$_;
        refused("$first, then $second",
            "upstream one {\n$upsync;\nupsync_dump_path $first;\n}\n"
            . "upstream two {\n$upsync;\nupsync_dump_path $second; #!\n}",
            '"upsync_dump_path" "' . ($second =~ m{^/} ? '' : $t->testdir . '/test/') . qq{$second" is that of upstream "one" already, expected a file of its own});
    }
    accepted('a file each', "upstream one {\n$upsync;\nupsync_dump_path a;\n}\n"
        . "upstream two {\n$upsync;\nupsync_dump_path b;\n}");
};

my ($minor, $patch) = `${\ Test::Upsync::nginx_binary() } -v 2>&1` =~ m{/1\.(\d+)\.(\d+)};
my $has_sticky = $minor > 29 || $minor == 29 && $patch >= 6;
my $has_least_time = $minor >= 31;

# Of a block as a whole, so without a line.
sub chosen { return qq{upsync: upstream "app": $_[0]} }

subtest 'a mistake in a balancing directive is told' => sub {
    my $servers = "server 127.0.0.1:1;\nserver 127.0.0.1:2;";
    my $values = 'roundrobin, ip_hash, least_conn, hash_modula, hash_ketama, random, least_time or local [NETWORK...]';
    my $networks = 'addresses and networks such as 10.0.0.0/8';
    my @table = (
        ['upsync_lb; #!', 'invalid number of arguments in "upsync_lb" directive'],
        (map { ["upsync_lb $_; #!", qq{unexpected "$_" in "upsync_lb", expected $values}] }
            'fastest', 'round_robin', 'RoundRobin', 'hash', 'sticky', 'fair', '10.0.0.0/8'),
        ['upsync_lb ""; #!', qq{unexpected "" in "upsync_lb", expected $values}],
        (map { ["upsync_lb $_ on; #!", 'unexpected "on" in "upsync_lb", expected one value'] }
            qw(roundrobin ip_hash least_conn hash_modula hash_ketama random least_time)),
        ['upsync_lb least_time header; #!', 'unexpected "header" in "upsync_lb", expected one value'],
        (map { ["upsync_lb local 10.0.0.0/8 $_; #!", qq{unexpected "$_" in "upsync_lb local", expected $networks}] }
            '10.0.0.0/33', '::1/129', '10.0.0', '10.0.0.0:80', '10.0.0.0/', 'localhost', '10.0.0.1-10.0.0.9', 'fe80::/x', '$host'),
        ['upsync_lb hash_modula;', chosen('"upsync_lb hash_modula" without "hash KEY", expected both')],
        ['upsync_lb hash_ketama;', chosen('"upsync_lb hash_ketama" without "hash KEY consistent", expected both')],
        (map {
            my ($lb, $directive, $named) = @$_;
            my $text = qq{"upsync_lb $lb" beside "$named", expected the same method of both, or one of them};
            (["upsync_lb $lb;\n$directive;", chosen($text)], ["$directive;\nupsync_lb $lb;", chosen($text)]);
        } map { [ @$_, $_->[1] ] }
            ['roundrobin', 'least_conn'], ['roundrobin', 'hash $uri'], ['roundrobin', 'ip_hash'], ['roundrobin', 'random'],
            ['ip_hash', 'least_conn'], ['ip_hash', 'hash $remote_addr'], ['least_conn', 'ip_hash'],
            ['least_conn', 'random two least_conn'], ['random', 'least_conn'], ['random', 'hash $request_id'],
            ['hash_modula', 'hash $uri$args consistent'], ['hash_ketama', 'hash $uri'], ['hash_ketama', 'ip_hash'],
            ['hash_modula', 'least_conn'], ['least_time', 'least_conn'], ['least_time', 'random two least_time=header'],
            ['local', 'least_conn'], ['local', 'hash $uri consistent'], ['local', 'random'], ['roundrobin', 'least_time header'],
            ['least_conn', 'least_time last_byte']),
        ["upsync_lb local 10.0.0.0/8;\nip_hash;",
            chosen('"upsync_lb local" beside "ip_hash", expected the same method of both, or one of them')],
        # nginx itself reads these.
        ['hash; #!', 'invalid number of arguments in "hash" directive'],
        ['hash $uri sideways; #!', 'invalid parameter "sideways"'],
        ['hash $nosuch;', 'unknown "nosuch" variable'],
        ['hash ${uri; #!', 'the closing bracket in "uri" variable is missing'],
        ['random three; #!', 'invalid parameter "three"'],
        ['random two fastest; #!', 'invalid parameter "fastest"'],
        ['least_conn on; #!', 'invalid number of arguments in "least_conn" directive'],
        ['ip_hash on; #!', 'invalid number of arguments in "ip_hash" directive'],
        $has_least_time ? () : (
            ['least_time; #!', 'invalid number of arguments in "least_time" directive'],
            ['least_time header inflight x; #!', 'invalid number of arguments in "least_time" directive'],
            (map {
                my ($words, $wrong) = @$_;
                ["$words; #!", qq{unexpected "$wrong" in "least_time", expected "least_time header" or "least_time last_byte"}];
            } ['least_time fast', 'fast'], ['least_time Header', 'Header'], ['least_time header inflight', 'inflight'],
                ['least_time last_byte inflight', 'inflight'], ['least_time ""', '']),
            (map {
                my ($words, $wrong) = @$_;
                ["$words; #!", qq{unexpected "$wrong" in "random", }
                    . 'expected "random [two [least_conn|least_time=header|least_time=last_byte]]"'];
            } ['random two least_time', 'least_time'], ['random two least_time=fast', 'least_time=fast'],
                ['random least_time=header', 'least_time=header']),
        ),
    );
    for (@table) {
        my ($text, $message) = @$_;
        my $label = $text =~ s/ #!|\n/ /gr;
        refused("$label alone", upstream("$servers\n$text"), $message);
        refused("$label with upsync", upstream("$upsync;\n$text"), $message);
    }
    for my $place (map { "$_ #!" } 'server', 'location') {
        my ($name) = split ' ', $place;
        refused("least_time in $name", ($name eq 'server' ? "server {\nleast_time header; #!\n}" :
            "server { location / {\nleast_time header; #!\n} }"), '"least_time" directive is not allowed here');
    }
    refused('sticky', upstream("$upsync;\nsticky cookie a; #!"), 'unknown directive "sticky"') unless $has_sticky;
};

subtest 'parameters of "server" that nginx lacks' => sub {
    my $time = 'expected a time of at most 2147483647 milliseconds in "server"';
    for my $block ($upsync, 'upsync_lb roundrobin', 'least_conn') {
        my ($name) = split ' ', $block;
        refused("$_ with $name", upstream("$block;\nserver 127.0.0.1:1 $_ weight=2; #!"), qq{invalid value in "$_", $time})
            for map { "slow_start=$_" } '', 'x', '-1', '1.5', '1M', '10ms1s', '2147483648ms', '99999999999999999999';
        refused("slow_start twice with $name", upstream("$block;\nserver 127.0.0.1:1 slow_start=1s slow_start=1s; #!"),
            'duplicate "slow_start", expected it once at most in "server"');
        refused("$_ with $name", upstream("$block;\nserver 127.0.0.1:1 slow_start=1s $_; #!"), qq{invalid parameter "$_"})
            for 'slow_start', 'drain=on', 'Drain', 'fast_start=1s';
        refused("no address with $name", upstream("$block;\nserver; #!"), 'invalid number of arguments in "server" directive');
    }
    my $ours = '"slow_start" and "drain" in "server" are for upstreams with "upsync", "upsync_lb" or "check", expected one of these';
    for my $block ('', 'least_conn;', 'ip_hash;', 'hash $uri consistent;', 'keepalive 4;', 'zone app 64k;', 'dyups $host;') {
        my $drains = $has_sticky ? () : 'drain';
        refused("$_ in a block with '$block'", upstream("$block\nserver 127.0.0.1:1 weight=2;\nserver 127.0.0.1:2 $_;"), chosen($ours))
            for 'slow_start=30s', 'weight=3 slow_start=1s max_fails=2', $drains // ();
    }
    my %good = map { ("$_->[0] $_->[1]" => "$_->[0];\nserver 127.0.0.1:1 $_->[1];\nserver 127.0.0.1:2;") } map {
        my $block = $_;
        map { [ $block, $_ ] } 'slow_start=30s', 'slow_start=500ms', 'slow_start=0', 'drain', 'slow_start=1m30s drain weight=5',
            'max_fails=2 drain down', 'weight=5 slow_start=10 max_conns=2', ($block =~ /ip_hash/ ? () : 'drain backup slow_start=1h');
    } $upsync, 'upsync_lb roundrobin', 'upsync_lb local', "upsync_lb ip_hash;\nip_hash", 'least_time header';
    all_accepted('good', %good);
};

subtest 'accepted in an upstream that is followed' => sub {
    my %good = (
        'nothing else' => "$upsync;",
        'all parameters' => "$upsync upsync_interval=500ms upsync_timeout=1m30s strong_dependency=off allow_empty=on;",
        'strong_dependency=on, as nobody starts' => "$upsync strong_dependency=on;",
        'an interval of 0' => "$upsync upsync_interval=0;",
        'the catalog' => 'upsync 127.0.0.1:8500/v1/catalog/service/app upsync_type=consul_services;',
        'health' => 'upsync 127.0.0.1:8500/v1/health/service/app?passing upsync_type=consul_health;',
        'no slash at the end' => 'upsync 127.0.0.1:8500/v1/kv/upstreams/app upsync_type=consul;',
        'arguments' => 'upsync 127.0.0.1:8500/v1/kv/app/?dc=x&token=y&stale upsync_type=consul;',
        'a name' => 'upsync consul.invalid:8500/v1/kv/app/ upsync_type=consul;',
        'no port' => 'upsync consul.invalid/v1/kv/app/ upsync_type=consul;',
        'IPv6' => 'upsync [::1]:8500/v1/kv/app/ upsync_type=consul;',
        'IPv6 without port' => 'upsync [::1]/v1/kv/app/ upsync_type=consul;',
        'http://' => 'upsync http://127.0.0.1:8500/v1/kv/app/ upsync_type=consul;',
        'type first' => 'upsync 127.0.0.1:8500/v1/kv/app/ upsync_interval=1s upsync_type=consul;',
        'a server' => "server 127.0.0.1:1;\n$upsync;",
        'a fake server' => "$upsync;\nserver 127.0.0.1:11111 down;",
        'a backup server' => "$upsync;\nserver 127.0.0.1:1;\nserver 127.0.0.1:2 backup;",
        'backup servers only' => "$upsync;\nserver 127.0.0.1:2 backup;",
        'zone before' => "zone before 64k;\n$upsync;",
        'zone after' => "$upsync;\nzone after 64k;",
        'zone and servers' => "zone app 64k;\nserver 127.0.0.1:1;\n$upsync;",
        'keepalive before' => "keepalive 16;\n$upsync;",
        'keepalive after' => "$upsync;\nkeepalive 16;",
        'keepalive and a server' => "server 127.0.0.1:1;\n$upsync;\nkeepalive 16;\nkeepalive_timeout 1s;",
        'the dump and its include' => "$upsync;\nupsync_dump_path servers.conf;\ninclude servers.conf;",
        'a dump that is not there yet' => "$upsync;\nupsync_dump_path new.conf;",
        'roundrobin' => "$upsync;\nupsync_lb roundrobin;",
        'roundrobin before' => "upsync_lb roundrobin;\n$upsync;",
        'a bound' => "$upsync;\nupsync_max_body 64m;",
        'networks' => "$upsync;\nupsync_lb local 10.0.0.0/8 192.168.1.7 fd00::/8 ::1;",
        'networks of this machine' => "$upsync;\nupsync_lb local;",
        'as with nginx-upsync-module' => "$upsync;\nhash \$uri consistent;\nupsync_lb hash_ketama;",
        (map { ("$_ before" => "$_;\n$upsync;", "$_ after" => "$upsync;\n$_;") }
            'least_conn', 'ip_hash', 'hash $uri', 'hash $uri consistent', 'hash constant', 'hash "$uri of $host"', 'random', 'random two',
            'random two least_conn', 'random two least_time=header', 'random two least_time=last_byte', 'least_time header',
            'least_time last_byte', $has_sticky ? 'sticky cookie a' : ()),
    );
    all_accepted('good', %good);
    accepted('settings of http', "upsync_zone 128k;\nupsync_max_body 1m;\n" . upstream("$upsync;"));
    accepted('settings of http below', upstream("$upsync;") . "\nupsync_zone 16m;");
    accepted('upstream_show alone', 'server { location /list { upstream_show; } }');
    ok(!-e $t->testdir . '/test/new.conf', 'nginx -t makes no dump file');
};

subtest 'the configuration of the article' => sub {
    my $article = <<'EOF';
    include       mime.types;
    default_type  application/octet-stream;
    sendfile        on;
    keepalive_timeout  65;

    upstream app {
       # 这里是consul的leader节点的HTTP端点
       upsync 192.168.56.200:8510/v1/kv/upstreams/app/ 
       upsync_timeout=6m 
       upsync_interval=500ms        
       upsync_type=consul 
       strong_dependency=off;
       # consul访问不了的时候的备用配置
       upsync_dump_path /data/nginx/app.conf;
       # 这里是为了兼容Nginx的语法检查
       include /data/nginx/app.conf;
    }

    server {
        listen       80;
        server_name  localhost;
        location / {
            proxy_pass http://app;
        }
        # 健康检查 - 查看负载均衡的列表
        location /upstream_list {
            upstream_show;
        }
    }
EOF
    $article =~ s{/data/nginx/app\.conf}{servers.conf}g;
    $article =~ s{listen       80}{listen 127.0.0.1:%%PORT_0%%};
    accepted('as it is there', $article);
};

subtest 'an upstream without "upsync" is as without the module' => sub {
    my $servers = "server 127.0.0.1:1;\nserver 127.0.0.1:2;";
    my %good;
    for my $method ('', 'least_conn;', 'ip_hash;', 'hash $uri;', 'hash $uri consistent;', 'random;', 'random two least_conn;') {
        my $name = $method || 'no method';
        my $zone = keys %good;
        $good{$name} = "$method\n$servers";
        $good{"$name keepalive"} = "$method\n$servers\nkeepalive 16;";
        $good{"$name zone keepalive"} = "zone zone$zone 64k;\n$method\n$servers\nkeepalive 16;";
    }
    all_accepted('static', %good);
    my @table = (
        ['hash;', 'invalid number of arguments in "hash" directive'],
        ['hash $uri other;', 'invalid parameter "other"'],
        ['ip_hash on;', 'invalid number of arguments in "ip_hash" directive'],
        ['least_conn on;', 'invalid number of arguments in "least_conn" directive'],
        ['random three;', 'invalid parameter "three"'],
        ['random two fastest;', 'invalid parameter "fastest"'],
        ['keepalive;', 'invalid number of arguments in "keepalive" directive'],
        ['keepalive many;', 'invalid value "many" in "keepalive" directive'],
        ["keepalive 1;\nkeepalive 1;", '"keepalive" directive is duplicate'],
        ["ip_hash;\nserver 127.0.0.1:3 backup;", 'balancing method does not support parameter "backup"'],
    );
    refused($_->[0] =~ s/\n/ /r, upstream("$servers\n$_->[0] #!"), $_->[1]) for @table;
    refused('no server', "upstream app {\n} #!", 'no servers are inside upstream');
    refused('no server, but the other directives', "upstream app {\nupsync_lb roundrobin;\n} #!",
        'no servers are inside upstream');
};

$t->done;
