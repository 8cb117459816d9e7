#!/usr/bin/perl

# Bad requests to the interface, with exact answers: nothing is half done after any of them. And
# names from hostile requests, and bodies of any bytes, which kill no worker.

use strict;
use warnings;

use MIME::Base64;
use Test::More;

use lib 't/lib';
use Test::Upsync;

my $times = $ENV{TEST_TIMES} // 400;
my $seed = $ENV{TEST_SEED} // int rand 2 ** 31;
note "TEST_SEED=$seed";
srand $seed;

my $t = Test::Upsync->new;
my ($a, $b) = $t->backends(2)->addresses;
$t->write_file('passwords', "user:{PLAIN}password\n");

# From 1.29.7 on nginx keeps so many connections without a directive.
my ($minor, $patch) = `${\ Test::Upsync::nginx_binary() } -v 2>&1` =~ m{/1\.(\d+)\.(\d+)};
my $kept = $minor > 29 || $minor == 29 && $patch >= 7 ? 32 : undef;
my $unkept = $kept ? "dyups_upstream unkept; upstream unkept { dyups \$host; keepalive 0; }" : '';

$t->write_file_expand('nginx.conf', <<"EOT");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    default_type text/html;
    dyups_state_path state;
    map \$uri \$mapped { default 1; }
    map \$upstream_addr \$unused { default 1; }
    $unkept
    upstream static { server $a; server $b backup; }
    upstream by_host { dyups \$http_host; server $a; }
    upstream by_name { dyups \$http_x_name; server $a; }
    upstream none { dyups \$host; }
    server {
        # A socket for each worker: the kernel then spreads connections over them.
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location / { proxy_pass http://\$host; }
        location /http_host { proxy_pass http://\$http_host; }
        location /name { proxy_pass http://\$http_x_name; }
        location /by_host { proxy_pass http://by_host; }
        location /by_name { proxy_pass http://by_name; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        client_max_body_size 4m;
        location / { dyups_interface; }
    }
    server {
        listen 127.0.0.1:%%PORT_2%% reuseport;
        client_max_body_size 4m;
        merge_slashes off;
        location /small/ { client_max_body_size 1k; dyups_interface; }
        location /memory/ { client_body_buffer_size 4m; dyups_interface; }
        location /file/ { client_body_buffer_size 1k; dyups_interface; }
        location /only_file/ { client_body_in_file_only clean; dyups_interface; }
        location /one_buffer/ { client_body_in_single_buffer on; dyups_interface; }
        location /read/ { dyups_interface read; }
        location /denied/ { deny all; dyups_interface; }
        location /allowed/ { allow 127.0.0.1; deny all; dyups_interface; }
        location /secret/ { auth_basic "dyups"; auth_basic_user_file %%TESTDIR%%/passwords; dyups_interface; }
        location /limited/ { dyups_interface; limit_except GET { deny all; } }
        location /some/ { dyups_interface; limit_except GET { allow 127.0.0.1; deny all; } }
        location /read_some/ { dyups_interface read; limit_except GET { allow 127.0.0.1; deny all; } }
    }
}
EOT
$t->run;
my ($traffic, $interface, $places) = map { $t->port($_) } 0 .. 2;
my @workers;
wait_until { (@workers = $t->workers) == 2 } 10, 'two workers';

sub ask {
    my ($method, $path, $body, %opt) = @_;
    return http($method, $opt{port} // $interface, $path, body => $body, timeout => 30, %opt);
}

sub told { my $answer = ask(@_); return "$answer->{status} $answer->{body}" }

my $state;

# All that there is: what is shown, with versions, and what a restart would find.
sub state {
    my $shown = ask('GET', '/detail?format=json')->{body} =~ s/"(?:connections|requests|failures)":\d+,?//gr;
    my @files = sort grep { s/.*(?=state)// } glob $t->testdir . '/state/*';
    return join "\n", $shown, map { "$_:\n" . $t->read_file($_) } @files;
}

# What is shown and saved is as it was.
sub unchanged {
    my $now = &state;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok($now eq $state, $_[0]) || diag "now $now";
}

is(told('POST', '/upstream/app', "server $a weight=2;server $b;"), '200 success', 'a list');
$state = &state;
like($state, qr/"app":\{.*state\/app\.conf:\nupstream app \{\n {4}server \Q$a\E weight=2 .*\n {4}server \Q$b\E .*\n\}\n/s,
    'shown and saved');

# A refusal, exactly, as text; then as JSON, where only a few codes are others; and nothing changes.
sub refused {
    my ($method, $path, $body, $expected, $allow, %opt) = @_;
    my $label = join ' ', $method, printable($path), defined $body ? '"' . printable($body) . '"' : ();
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $answer = ask($method, $path, $body, %opt);
    is("$answer->{status} $answer->{body}", $expected, $label);
    my $headers = $answer->{headers};
    is($headers->{allow}, $allow, "$label: Allow");
    is($headers->{'content-type'}, undef, "$label: no type");
    is($headers->{'content-length'}, $answer->{status} == 204 ? undef : length($expected) - 4, "$label: length")
        unless $method eq 'HEAD';

    my %accept = (headers => { %{ $opt{headers} // {} }, Accept => 'application/json' });
    my $json = ask($method, $path, $body, %opt, %accept);
    my $status = $expected =~ /^(?:204|404 not found uptream)/ ? 400 : $answer->{status};
    is("$json->{status} " . ($json->{headers}{allow} // ''), "$status " . ($allow // ''), "$label: as JSON");
    is($json->{headers}{'content-type'}, 'application/json', "$label: type");
    if ($method ne 'HEAD') {
        my $said = eval { json($json->{body}) } // {};
        is_deeply([ sort keys %$said ], [ 'msg', 'status' ], "$label: code and text") || diag $json->{body};
        is($said->{status}, $status, "$label: the code");
    }
    unchanged("$label: nothing changed");
    return;
}

sub printable {
    my $text = shift;
    $text =~ s/([^ -~])/sprintf '\\x%02x', ord $1/ge;
    return length $text > 60 ? substr($text, 0, 60) . '...' : $text;
}

my $all = 'GET, POST, PUT, PATCH, DELETE';
my ($interface_text, $api_text) = ('not support this interface', 'not support this api');
my $name_text = '400 invalid upstream name, expected 1 to 255 letters, digits, ".", "-", "_" or ":"';

subtest 'methods' => sub {
    refused('HEAD', $_, undef, '405 ', $all) for '/list', '/upstream/app', '/';
    refused($_, '/upstream/app', "server $b;", '405 ', $all) for qw(OPTIONS PROPFIND MKCOL COPY MOVE LOCK BREW);
    refused('PATCH', $_->[0], 'down', '405 ', $_->[1]) for ['/upstream/app', 'GET, POST, PUT, DELETE'],
        ['/upstream/app/server', 'GET, POST, PUT'], ['/upstream/app/server/', 'GET, POST, PUT'],
        ['/upstream/app/reset', 'POST'], ['/upstream', 'GET'], ['/list', 'GET'], ['/', 'GET'], ['/a/b', 'GET'];
    refused('PUT', '/upstream/static/reset', undef, '405 ', 'POST');
    refused('DELETE', '/upstream/app/server', undef, "405 $interface_text", 'GET, POST, PUT');
    refused('DELETE', '/upstream/static/reset', undef, "405 $interface_text", 'POST');
    like(told($_, '/upstream/app', "server $b;"), qr/^40[05] /, "$_: nginx itself says no") for qw(TRACE CONNECT);
    is(told($_, '/upstream/app', "server $b;") =~ s/ .*//sr, 400, "$_: nor is that a method") for qw(get Post);
    unchanged('nothing changed');
};

subtest 'paths' => sub {
    refused('GET', $_, undef, '404 ') for '/', '/lists', '/lis', '/upstreams/app', '/upstream', '/upstream/', '/upstream//',
        '/server/app', '/%6cistx', '/unknown/app', '/detail2', '/statu', '/_dyups_upstream_sandbox_', '/upstream/unknown',
        '/upstream/unknown/server', '/upstream/_dyups_upstream_sandbox_', '/upstream/app/x', '/upstream/app/servers',
        '/upstream/app/server/x', "/upstream/app/server/$a", '/upstream/static/reset', '/upstream/app%2fx';
    for my $method (qw(POST PUT)) {
        refused($method, $_, "server $b;", "404 $interface_text")
            for '/', '/list', '/upstream', '/upstream/', '/upstream//', '/app', '/upstream/app/servers', '/upstream/app/x',
            '/upstream/app/server/x', "/upstream/app/server/$a", '/upstream/app/reset/x', '/upstream/app/server/server/x',
            '/upstream/app%2fx', '/a/b/c', '/list/app/server';
        refused($method, $_, "server $b;", "404 $api_text")
            for '/list/app', '/detail/app', '/status/app', '/upstreams/app', '/a/b';
    }
    refused('DELETE', $_, undef, "405 $interface_text", 'GET')
        for '/', '/list', '/upstream', '/upstream/', '/upstream/app/x', '/a/b/c', '/upstream/app/servers', '/upstream/app/servers/x';
    refused('DELETE', $_, undef, "405 $api_text", 'GET') for '/list/app', '/detail/app', '/upstreams/app', '/a/b';
    refused('DELETE', '/upstream/unknown', undef, '404 not found uptream');
    refused('POST', '/upstream/unknown/server', "server $b;", '404 not found uptream');
    refused('PATCH', "/upstream/unknown/server/$a", 'down', '404 not found uptream');
    refused('DELETE', "/upstream/unknown/server/$a", undef, '404 not found uptream');
    refused('POST', '/upstream/app/reset', undef, '404 upstream "app" is not in nginx.conf');
    refused('PATCH', '/upstream/app/server/127.0.0.1:1', 'down', '404 not found server');
    refused('DELETE', '/upstream/app/server/127.0.0.1:1', undef, '404 not found server');
    refused('DELETE', '/upstream/app/server/unix:/nowhere', undef, '404 not found server');

    # What is the same path.
    my $app = "200 server $a\nserver $b\n";
    is(told('GET', $_), $app, "GET $_") for '/upstream/app', '//upstream//app//', '/UpStream/APP', '/upstream/app/',
        '/u%70stream/%61pp', '/upstream%2fapp', '/upstream/x/../app', '/./upstream/app', '/upstream/app?',
        '/upstream/app?x=y&z', '/upstream/app#x', '/upstream/app/server', '/upstream/app/Server//';
    is(told('GET', $_, undef, port => $places), $app, "GET $_") for '/read//upstream//app/', '/read////upstream/app';
    is(told('GET', "/LIST/x/y"), told('GET', '/list'), 'words behind "list" do not count');
    is(told('GET', $_) =~ s/ .*//sr, 400, "GET $_: nginx itself says no") for '/upstream/a%00b', '/upstream/%zz', '/../upstream/app';
    unchanged('nothing changed');
};

subtest 'names' => sub {
    my @names = ('a%20b', 'a%2bb', 'a+b', 'a;b', 'a=b', 'a@b', 'a*', 'a%5cb', "a\xff", 'a%ff', '%c3%a9', 'a%0ab', 'a%7f',
        'a$host', '{}', "'", '"a"', 'n' x 256, 'n' x 4000);
    for my $name (@names) {
        refused('GET', "/upstream/$name", undef, $name_text);
        refused($_, "/upstream/$name", "server $b;", $name_text) for 'POST', 'PUT';
        refused('DELETE', "/upstream/$name", undef, $name_text);
        refused('POST', "/upstream/$name/server", "server $b;", $name_text);
        refused('POST', "/upstream/$name/reset", undef, $name_text);
        refused($_, "/upstream/$name/server/$a", 'down', $name_text) for 'PATCH', 'DELETE';
    }
    my %addresses = (
        'backend' => 'expected an address, not the host name "backend:80"',
        'localhost:80' => 'expected an address, not the host name "localhost:80"',
        '127.0.0.1:0' => 'invalid port in "127.0.0.1:0", expected 1 to 65535',
        '127.0.0.1:65536' => 'invalid port in "127.0.0.1:65536", expected 1 to 65535',
        '127.0.0.1:80/x' => 'invalid port in "127.0.0.1:80/x", expected 1 to 65535',
        '127.0.0.300' => 'invalid host in "127.0.0.300"',
        '%5b::1' => 'invalid host in "[::1"',
        '::1' => 'invalid port in "::1", expected 1 to 65535',
        'a%20b' => 'invalid host in "a b"',
        'upstream:static' => 'invalid port in "upstream:static", expected 1 to 65535',
        'unix:' => 'invalid path in "unix:", expected unix:/PATH of at most 107 bytes',
        'unix:x' => 'invalid path in "unix:x", expected unix:/PATH of at most 107 bytes',
        'unix:/a;b' => 'invalid path in "unix:/a;b", expected unix:/PATH of at most 107 bytes',
        'unix:/' . 'a' x 107 => 'invalid path in "unix:/' . 'a' x 107 . '", expected unix:/PATH of at most 107 bytes',
        'x' x 300 . '%ff' => 'invalid host in "' . 'x' x 128 . '..."',
        'a%0a%22b' => 'invalid host in "a\n\"b"',
    );
    for my $address (sort keys %addresses) {
        refused($_, "/upstream/app/server/$address", 'down', "400 $addresses{$address}") for 'PATCH', 'DELETE';
    }
};

# [body, line, column, reason]
my $directives = 'expected "server", "keepalive", "least_conn", "ip_hash", "hash", "random", "least_time" or "check"';
my $parameters = 'expected weight=N, max_fails=N, fail_timeout=TIME, max_conns=N, slow_start=TIME, backup, drain or down';
my $plain = 'expected a word without quotes, braces, dollar signs and backslashes';
my $text = 'expected text without control characters';
my @unavailable = qw(
    consistent_hash fair keepalive_requests keepalive_time keepalive_timeout ntlm queue resolver resolver_timeout
    session_sticky state sticky sticky_cookie_insert upsync upsync_dump_path vnswrr zone);
my @texts = (
    [' ', 1, 1, 'no server in the body, expected at least one'],
    ["# server $b;\n\n", 1, 1, 'no server in the body, expected at least one'],
    ['keepalive 5;', 1, 1, 'no server in the body, expected at least one'],
    [';', 1, 1, qq{unexpected ";", $directives}],
    ["server $b;;", 1, length("server $b;;"), qq{unexpected ";", $directives}],
    ['server', 1, 1, 'unexpected end after "server", expected an address after "server"'],
    ['server;', 1, 7, 'unexpected ";", expected an address after "server"'],
    ["server $b", 1, 8, qq{unexpected end after "$b", expected ";"}],
    ["server $b\n", 1, 8, qq{unexpected end after "$b", expected ";"}],
    ["server $b\nserver $a;", 2, 1, 'unexpected "server", expected ";" before it'],
    ["server $b;\r\n\tserver $a weight=2 server $a;", 2, 10 + length "$a weight=2",
        'unexpected "server", expected ";" before it'],
    ["server $b; # a\n server $a # b; \n", 2, 9, qq{unexpected end after "$a", expected ";"}],
    ["server $b;\nserver $a bogus;", 2, 9 + length $a, qq{unknown parameter "bogus", $parameters}],
    ["Server $b;", 1, 1, qq{unknown directive "Server", $directives}],
    ["upstream x { server $b; }", 1, 1, qq{unknown directive "upstream", $directives}],
    ["include /etc/passwd;", 1, 1, qq{unknown directive "include", $directives}],
    ["server $b;\ninclude /etc/passwd;", 2, 1, qq{unknown directive "include", $directives}],
    ["server $b; ssl_certificate x;", 1, 9 + length $b . ';', qq{unknown directive "ssl_certificate", $directives}],
    ["server=$b;", 1, 1, qq{unknown directive "server=$b", $directives}],
    (map { ["server $b;\n  $_;", 2, 3, qq{"$_" is not available in a posted list yet, $directives}] } @unavailable),
    (map { ["server $b;\n  $_ x;", 2, 3, qq{"$_" cannot be posted, expected it in the block of the upstream in nginx.conf}] }
        qw(check_ssl_certificate check_ssl_certificate_key check_ssl_trusted_certificate)),
    (map { ["server 127.0.0.1$_;", 1, 8, qq{invalid port in "127.0.0.1$_", expected 1 to 65535}] }
        qw(: :0 :65536 :-1 :+1 :1:2 :http :1e1)),
    (map { ["server $_;", 1, 8, qq{invalid host in "$_"}] }
        '127.0.0.256', '1.2.3', '[::1', '[::1]x', '[x]:80', 'a/b', 'a..b', '.a', '-@-', ':80', 'a' x 64),
    ['server http://127.0.0.1;', 1, 8, 'invalid port in "http://127.0.0.1", expected 1 to 65535'],
    ['server ' . 'a.' x 127 . 'a;', 1, 8, 'invalid host in "' . 'a.' x 64 . '..."'],
    (map { ["server $_;", 1, 8, qq{invalid path in "$_", expected unix:/PATH of at most 107 bytes}] }
        'unix:', 'unix:a', 'unix:/a:b', 'unix:/' . 'a' x 107),
    (map { ["server upstream:$_;", 1, 8, qq{"upstream:$_": } . $name_text =~ s/^400 //r] } '', 'a/b', 'a,b', '/dyups'),
    ['server upstream:unknown;', 1, 1, 'upstream "unknown" is not in nginx.conf'],
    ["server $b;\n server upstream:app;", 2, 2, 'upstream "app" is not in nginx.conf'],
    ['server upstream:none;', 1, 1, 'upstream "none" has no servers'],
    (map { ["server $b $_;", 1, 9 + length $b, qq{invalid value in "$_", expected 0 to 65535}] }
        map { "weight=$_" } '', 'x', '-1', '+1', '1.5', '65536', '99999999999999999999'),
    (map { ["server $b $_;", 1, 9 + length $b, qq{invalid value in "$_", expected 0 to 2147483647}] }
        'max_fails=', 'max_fails=2147483648', 'max_conns=-1', 'max_conns=x'),
    (map { ["server $b $_;", 1, 9 + length $b, qq{invalid value in "$_", expected a time of at most 2147483647 seconds}] }
        map { "fail_timeout=$_" } '', 'x', '1ms', '10x', '-1', '2147483648', '99y'),
    (map { ["server $b $_;", 1, 9 + length $b, qq{invalid value in "$_", expected a time of at most 2147483647 milliseconds}] }
        map { "slow_start=$_" } '', 'x', '-1', '+1', '1.5', '1M', '1y', '10ms1s', '2147483648ms', '2147484', '99999999999999999999'),
    (map { ["server $b $_;", 1, 9 + length $b, qq{unknown parameter "$_", $parameters}] }
        'weight', 'down=1', 'backup=on', 'drain=on', 'Weight=1', 'slow_start', 'Slow_start=1s', 'resolve', 'service=x', 'route=x',
        '=', 'weight:1', '=weight'),
    (map { ["server $b $_ $_;", 1, 10 + length "$b$_", 'duplicate "' . s/=.*//r . '", expected it once at most'] }
        'weight=1', 'max_fails=1', 'max_conns=1', 'fail_timeout=1', 'slow_start=1', 'backup', 'drain', 'down'),
    ["server $b;keepalive;", 1, 18 + length $b, 'unexpected ";", expected a number after "keepalive"'],
    (map { ["server $b;\nkeepalive $_;", 2, 11, qq{invalid value in "keepalive $_", expected 1 to 65535}] }
        0, 65536, '-1', 'x', '1k'),
    ["server $b;\nkeepalive 1 2;", 2, 13, 'unexpected "2", expected ";" before it'],
    ["keepalive 1;\nkeepalive 1;server $b;", 2, 1, 'duplicate "keepalive", expected it once at most'],
    ["server $b;\n keepalive 5;", 2, 2, '"keepalive" needs an upstream of nginx.conf that has it, named by "dyups_upstream"'],
    ['least_conn;', 1, 1, 'no server in the body, expected at least one'],
    (map { ["server $b;upsync_lb $_;", 1, 19 + length $b, qq{unexpected "$_" in "upsync_lb", expected roundrobin or local [NETWORK...]}] }
        qw(ip_hash least_conn hash_modula hash_ketama random least_time)),
    ["upsync_lb roundrobin on;server $b;", 1, 22, 'unexpected "on" in "upsync_lb", expected one value'],
    ["server $b; upsync_lb local ;", 1, 10 + length $b, 'no network in "upsync_lb local", expected one such as 10.0.0.0/8'],
    (map { ["upsync_lb local ::1 $_;server $b;", 1, 21,
        qq{unexpected "$_" in "upsync_lb local", expected addresses and networks such as 10.0.0.0/8}] }
        '10.0.0.0/33', '10.0.0', 'x', 'localhost', 'fe80::/129', '10.0.0.1:80', '10.0.0.1-2'),
    ["upsync_lb local 10.0.0.0/8\nserver $b;", 2, 1, 'unexpected "server", expected ";" before it'],
    (map {
        my ($first, $name, $second) = @$_;
        ["$first;\nserver $b;\n $second;", 3, 2, qq{duplicate method "$name" beside "$first", expected one at most}];
    } ['least_conn', 'ip_hash', 'ip_hash'], ['ip_hash', 'ip_hash', 'ip_hash'], ['hash $uri consistent', 'hash', 'hash'],
        ['random two least_conn', 'least_time', 'least_time header'], ['upsync_lb roundrobin', 'least_conn', 'least_conn'],
        ['upsync_lb local 10.0.0.0/8', 'upsync_lb', 'upsync_lb roundrobin'], ['hash ${arg_a}-b', 'random', 'random x']),
    (map { ["$_ x;server $b;", 1, 2 + length, qq{unexpected "x" in "$_", expected no parameter}] } 'least_conn', 'ip_hash'),
    ["hash;server $b;", 1, 5, 'unexpected ";", expected a key after "hash"'],
    ['hash', 1, 1, 'unexpected end after "hash", expected a key after "hash"'],
    ["server $b;hash \$uri", 1, 14 + length $b, 'unexpected end after "$uri", expected ";"'],
    ["hash \$uri\nserver $b;", 2, 1, 'unexpected "server", expected ";" before it'],
    ["hash \$uri keepalive 5;server $b;", 1, 11, 'unexpected "keepalive", expected ";" before it'],
    (map { ["server $b;\nhash \$uri $_;", 2, 11, qq{unexpected "$_" in "hash", expected "hash KEY [consistent]"}] }
        'sideways', 'Consistent', 'consistent=on'),
    ["hash \$uri consistent x;server $b;", 1, 22, 'unexpected "x" in "hash", expected "hash KEY [consistent]"'],
    ["hash \$uri \$host;server $b;", 1, 11, qq{unexpected "\$" in "\$host", $plain}],
    (map { ["hash $_;server $b;", 1, 6, qq{capture in the key "$_" of "hash", expected variables with names}] }
        '$1', 'a$9b', '${1}', '$1st'),
    (map { ["hash $_;server $b;", 1, 6, qq{no name after "\$" in the key "$_" of "hash", expected "\$NAME"}] }
        '$', 'a$', '$$uri', '${}', '$-'),
    (map { ["hash $_;server $b;", 1, 6, qq(no "}" after "\${" in the key "$_" of "hash", expected "\${NAME}")] }
        '${uri', '${u-}', '${'),
    (map {
        my ($key, $found) = @$_;
        my $shown = $key =~ s/(["\\])/\\$1/gr;
        ["hash $key;server $b;", 1, 6, qq(unexpected "$found" in the key "$shown" of "hash", expected a word without quotes, )
            . 'backslashes, braces but those of "${NAME}", and "#" at its start'];
    } ['"$uri"', '\\"'], ["'\$uri'", "'"], ['$uri{}', '{'], ['{', '{'], ['\\$uri', '\\\\'], ['$uri}', '}']),
    ["hash \0;server $b;", 1, 6, "unexpected byte 0x00, $text"],
    ["hash \xff;server $b;", 1, 6, 'unexpected byte 0xff, expected UTF-8'],
    ['hash ' . 'x' x 1025 . ";server $b;", 1, 6, 'the key of "hash" has 1025 bytes, expected at most 1024'],
    ['hash ' . '$uri' x 33 . ";server $b;", 1, 6,
        'too many parts in the key "' . '$uri' x 32 . '..." of "hash", expected at most 32'],
    (map { ["server $b;\n hash $_;", 2, 2, 'unknown variable "$nosuch" in "hash", expected one that nginx or nginx.conf has'] }
        '$nosuch', '$NoSuch', 'a${nosuch}b', '$uri$nosuch', '$nosuch consistent', '$arg_a$nosuch$other'),
    ["least_time;server $b;", 1, 1, 'no parameter after "least_time", expected "least_time header" or "least_time last_byte"'],
    (map {
        my ($words, $wrong) = @$_;
        ["server $b;\nleast_time $words;", 2, 1 + index("least_time $words;", $wrong),
            qq{unexpected "$wrong" in "least_time", expected "least_time header" or "least_time last_byte"}];
    } ['header inflight', 'inflight'], ['last_byte inflight', 'inflight'], ['first_byte', 'first_byte'], ['Header', 'Header'],
        ['connect', 'connect']),
    (map {
        my ($words, $wrong) = @$_;
        ["server $b;\nrandom $words;", 2, 1 + index("random $words;", $wrong),
            qq{unexpected "$wrong" in "random", expected "random [two [least_conn|least_time=header|least_time=last_byte]]"}];
    } ['three', 'three'], ['two fastest', 'fastest'], ['least_conn', 'least_conn'], ['two least_conn more', 'more'],
        ['two least_time', 'least_time'], ['two least_time=connect', 'least_time=connect']),
    ["server $b least_conn;", 1, 9 + length $b, 'unexpected "least_conn", expected ";" before it'],
    ["server $b\nhash \$uri;", 2, 1, 'unexpected "hash", expected ";" before it'],
    ["Least_conn;server $b;", 1, 1, qq{unknown directive "Least_conn", $directives}],
    (map {
        my ($word, $first) = @$_;
        my $shown = $word =~ s/(["\\])/\\$1/gr;
        ["server $a;\nserver $word;", 2, 8, qq(unexpected "$first" in "$shown", $plain)]
    } ["\"$b\"", '\\"'], ["'$b'", "'"], ["$b\{}", '{'], ['$host', '$'], ["$b\\", '\\\\'], ['${host}', '$']),
    ["server $b" . ' { }', 1, 9 + length $b, qq(unexpected "{" in "{", $plain)],
    ["server $b;" . ' }', 1, 10 + length $b, qq(unexpected "}" in "}", $plain)],
    ["server $b weight=\"1\";", 1, 9 + length $b, qq{unexpected "\\"" in "weight=\\"1\\"", $plain}],
    ["server $b\0;", 1, 8, "unexpected byte 0x00, $text"],
    ["server $b;\0", 1, 9 + length $b, "unexpected byte 0x00, $text"],
    ["server $b;\n# \x1b[31m\n", 2, 3, "unexpected byte 0x1b, $text"],
    ["\x7fELF\x02", 1, 1, "unexpected byte 0x7f, $text"],
    ["\x1f\x8b\x08\0\0", 1, 1, "unexpected byte 0x1f, $text"],
    ["server \xff;", 1, 8, 'unexpected byte 0xff, expected UTF-8'],
    ["server \xc3\xa9;", 1, 8, qq{invalid host in "\xc3\xa9"}],
    ["server \xe2\x80\xae;", 1, 8, 'invalid host in "\u{202e}"'],
    ["\xff\xfes\0e\0r\0", 1, 1, 'unexpected byte 0xff, expected UTF-8'],
    ['[{"host":"127.0.0.1"}]', 1, 1, 'unexpected "{" in "[{\"host\":\"127.0.0.1\"}]", ' . $plain],
    ['x' x 5000, 1, 1, 'unknown directive "' . 'x' x 128 . qq{...", $directives}],
);

subtest 'bodies' => sub {
    refused($_->[0], "/upstream/app$_->[1]", $_->[2], '204 ') for map { my $body = $_; (['POST', '', $body], ['PUT', '', $body],
        ['POST', '/server', $body], ['PUT', '/server', $body], ["PATCH", "/server/$a", $body]) } undef, '';
    for (@texts) {
        my ($body, $line, $column, $reason) = @$_;
        refused('POST', '/upstream/app', $body, "400 add server failed: line $line, column $column: $reason");
    }
    # The same for one server, where it can be.
    my $one = 'expected "server"';
    for (
        (map { ["$_;", 1, 1, 'unexpected "' . (split)[0] . qq{", $one}] }
            'keepalive 5', 'least_conn', 'ip_hash', 'hash $uri', 'random', 'least_time header'),
        ["zone x;", 1, 1, qq{"zone" is not available in a posted list yet, $one}],
        ["$b;", 1, 1, qq{unknown directive "$b;"} =~ s/;"/", $one/r],
        ["server $b;server $a;", 1, 9 + length $b, 'unexpected "server", expected nothing after one "server"'],
        ["server $b; keepalive 5;", 1, 10 + length $b, 'unexpected "keepalive", expected nothing after one "server"'],
        ["server $b; least_conn;", 1, 10 + length $b, 'unexpected "least_conn", expected nothing after one "server"'],
        ["server $b down=off;", 1, 9 + length $b, qq{unknown parameter "down=off", $parameters}],
        ["server upstream:unknown;", 1, 1, 'upstream "unknown" is not in nginx.conf'],
        ["server $b", 1, 8, qq{unexpected end after "$b", expected ";"}],
        ["\n\0", 2, 1, "unexpected byte 0x00, $text"],
    ) {
        my ($body, $line, $column, $reason) = @$_;
        refused('POST', '/upstream/app/server', $body, "400 add server failed: line $line, column $column: $reason");
    }
    my $changes = 'expected weight=N, max_fails=N, fail_timeout=TIME, max_conns=N, slow_start=TIME, '
        . 'backup[=on|off], drain[=on|off] or down[=on|off]';
    for (
        [' ', 1, 1, "no parameter in the body, $changes"],
        [';', 1, 1, qq{unknown parameter ";", $changes}],
        ["server $a down;", 1, 1, qq{unknown parameter "server", $changes}],
        ["down;\nup", 2, 1, 'unexpected "up", expected nothing after ";"'],
        ['down=yes', 1, 1, 'invalid value in "down=yes", expected on or off'],
        ['backup=', 1, 1, 'invalid value in "backup=", expected on or off'],
        ['drain=1', 1, 1, 'invalid value in "drain=1", expected on or off'],
        ['down slow_start=-1', 1, 6, 'invalid value in "slow_start=-1", expected a time of at most 2147483647 milliseconds'],
        ['slow_start=30s slow_start=30s', 1, 16, 'duplicate "slow_start", expected it once at most'],
        ['drain drain=off', 1, 7, 'duplicate "drain", expected it once at most'],
        ['slow_start', 1, 1, qq{unknown parameter "slow_start", $changes}],
        ['least_conn;', 1, 1, qq{unknown parameter "least_conn", $changes}],
        ['down weight=65536', 1, 6, 'invalid value in "weight=65536", expected 0 to 65535'],
        ["weight=1\nweight=1", 2, 1, 'duplicate "weight", expected it once at most'],
        ["down\0", 1, 1, "unexpected byte 0x00, $text"],
        ['weight="1"', 1, 1, qq{unexpected "\\"" in "weight=\\"1\\"", $plain}],
    ) {
        my ($body, $line, $column, $reason) = @$_;
        refused('PATCH', "/upstream/app/server/$a", $body, "400 add server failed: line $line, column $column: $reason");
    }
};

subtest 'bodies of JSON begin as those of Slardar do' => sub {
    my $changes = 'weight, max_fails, fail_timeout, max_conns, slow_start, down, drain or backup';
    my $server = '{"host":"127.0.0.1","port":1}';
    for (
        ['{', 'decode body error: line 1, column 1: EOF while parsing an object'],
        ["{\n\"servers\":[$server,]}", 'decode body error: line 2, column ' . (13 + length $server) . ': expected value'],
        ['{}}', 'decode body error: line 1, column 3: trailing characters'],
        [" \r\n{'servers':[]}", 'decode body error: line 2, column 2: key must be a string'],
        ["{\"servers\":[{\"host\":\"\xff\",\"port\":1}]}", 'decode body error: line 1, column 22: invalid UTF-8'],
        ["{\"servers\":[$server]}\0", 'decode body error: line 1, column ' . (15 + length $server) . ': trailing characters'],
        ["{\"a\":\"\0\"}",
            'decode body error: line 1, column 6: control character (\\u0000-\\u001F) found while parsing a string'],
        ['{}', 'can not update empty level: neither "servers" nor "cluster" is there'],
        ['{"server":[]}', 'can not update empty level: neither "servers" nor "cluster" is there'],
        ['{"servers":[]}', 'can not update empty level: level 0 has no servers'],
        ['{"cluster":[]}', 'can not update empty level: "cluster" is empty'],
        ["{\"cluster\":[{\"servers\":[$server]},{\"servers\":[]}]}", 'can not update empty level: level 1 has no servers'],
        ["{\"servers\":[$server],\"cluster\":[]}", 'body invalid: "servers" and "cluster" exclude each other'],
        ["{\"servers\":[$server],\"servers\":[$server]}", 'body invalid: key "servers" is there twice'],
        ["{\"servers\":[$server],\"keepalive\":0}", 'body invalid: "keepalive" is 0, expected 1 to 65535'],
        ["{\"servers\":[$server],\n\"keepalive\":20}",
            'body invalid: line 2, column 13: "keepalive" needs an upstream of nginx.conf that has it, named by "dyups_upstream"'],
        ['{"cluster":5}', 'body invalid: "cluster": expected an array or an object, not 5'],
        ['{"servers":5}', 'servers invalid: level 0: expected an array, not 5'],
        ['{"servers":[5]}', 'servers invalid: server 0: expected an object, not 5'],
        ["{\"servers\":[$server,{}]}", 'no server.host nor server.port found: server 1'],
        ['{"servers":[{"host":"127.0.0.1"}]}', 'no server.host nor server.port found: server 0'],
        ['{"servers":[{"port":80}]}', 'no server.host nor server.port found: server 0'],
        ['{"servers":[{"host":"127.0.0.1","port":0}]}', 'servers invalid: server 0: "port" is 0, expected 1 to 65535'],
        ['{"servers":[{"host":"127.0.0.1","port":65536}]}', 'servers invalid: server 0: "port" is 65536, expected 1 to 65535'],
        ['{"servers":[{"host":"a b","port":80}]}', 'servers invalid: server 0: invalid host in "a b:80"'],
        ['{"servers":[{"host":"127.0.0.1","port":80,"weight":-1}]}', 'servers invalid: server 0: "weight" is -1, expected 0 to 65535'],
        (map {
            my ($key, $value) = @$_;
            my $shown = $value =~ s/"/\\"/gr;
            my $right = $key eq 'drain' ? 'false or true' : 'a number of seconds or a time of at most 2147483647 milliseconds';
            [qq({"servers":[{"host":"127.0.0.1","port":80,"$key":$value}]}),
                qq{servers invalid: server 0: "$key" is $shown, expected $right}];
        } (map { [slow_start => $_] } '-1', '1.2345', '1e1', '2147484', '"1M"', '"-1s"', '""', 'true', '[1]'),
            (map { [drain => $_] } 2, '"on"', '-1')),
        ['{"servers":[{"host":"127.0.0.1","port":80,"wieght":1}]}',
            "servers invalid: server 0: unknown key \"wieght\", expected host, port, $changes"],
        ['{"servers":[{"host":"upstream:unknown"}]}', 'servers invalid: server 0: upstream "unknown" is not in nginx.conf'],
        ["{\"servers\":[$server,{\"host\":\"upstream:none\"}]}", 'servers invalid: server 1: upstream "none" has no servers'],
        ['{"servers":[{"host":"unix:x"}]}',
            'servers invalid: server 0: invalid path in "unix:x", expected unix:/PATH of at most 107 bytes'],
        ['{"a":' . '[' x 100_000, 'decode body error: line 1, column '],
        ["{\"a\":" . '[' x 100_000 . ']' x 100_000 . '}', 'can not update empty level: neither "servers" nor "cluster" is there'],
    ) {
        my ($body, $reason) = @$_;
        refused_json('POST', '/upstream/app', $body, $reason);
    }
    refused_json('POST', '/upstream/app', "server $b;", 'decode body error: line 1, column 1: expected value', 'application/json');
    refused_json('POST', '/upstream/app', '', 'decode body error: empty body', 'application/json', '?format=json');
    refused_json('POST', '/upstream/app/server', "[$server]",
        'servers invalid: server 0: expected an object, not [{\"host\":\"127.0.0.1\",\"port\":1}]', 'application/json');
    refused_json('POST', '/upstream/app/server', "{\"servers\":[$server]}",
        "servers invalid: server 0: unknown key \"servers\", expected host, port, $changes");
    refused_json('PATCH', "/upstream/app/server/$a", '{}', "body invalid: no parameter, expected $changes");
    refused_json('PATCH', "/upstream/app/server/$a", '{"port":80}', "body invalid: unknown key \"port\", expected $changes");
    refused_json('PATCH', "/upstream/app/server/$a", '{"weight":1,"down":2}', 'body invalid: "down" is 2, expected false or true');
};

# A body of JSON is answered so, whatever the client accepts.
sub refused_json {
    my ($method, $path, $body, $reason, $type, $query) = @_;
    my $label = "$method $path " . printable($body);
    my %headers = ('Content-Type' => $type // 'application/x-www-form-urlencoded');
    my $answer = ask($method, $path . ($query // ''), $body, headers => \%headers);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is("$answer->{status} " . ($answer->{headers}{'content-type'} // ''), '400 application/json', "$label: code and type");
    my $said = eval { json($answer->{body}) } // {};
    is($said->{status}, 400, "$label: code in the body");
    # Where a text of many levels ends is not ours to say.
    my $shown = $reason =~ /column $/ ? substr $said->{msg} // '', 0, length $reason : $said->{msg};
    is($shown, $reason, "$label: text") or diag $answer->{body};
    unchanged("$label: nothing changed");
    return;
}

subtest 'a host name that does not resolve is named' => sub {
    refused('POST', '/upstream/app', "server $b;\n server x.Invalid;",
        '400 add server failed: line 2, column 2: host name "x.invalid" does not resolve');
    refused('POST', '/upstream/app/server', 'server x.invalid:8080;',
        '400 add server failed: line 1, column 1: host name "x.invalid" does not resolve');
    refused_json('POST', '/upstream/app', '{"servers":[{"host":"127.0.0.1","port":1},{"host":"x.invalid","port":1}]}',
        'servers invalid: server 1: host name "x.invalid" does not resolve');
    refused_json('POST', '/upstream/app/server', '{"host":"x.invalid","port":1}',
        'servers invalid: server 0: host name "x.invalid" does not resolve');
};

subtest 'bodies of any size, however they come' => sub {
    my @many = map { "127.0.0.1:$_" } 20001 .. 25000;
    my %bodies = (
        'few servers in 300 KB' => [ "server $a; # " . 'x' x 150_000 . "\n" . ' ' x 150_000 . "server $b;" => $a, $b ],
        '5,000 servers' => [ join('', map { "server $_ weight=1;\n" } @many) => @many ],
        'JSON' => [ '{"servers":[' . join(',', map { qq({"host":"127.0.0.1","port":$_}) } 20001 .. 25000) . ']}' => @many ],
    );
    for my $place (qw(memory file only_file one_buffer)) {
        for my $kind (sort keys %bodies) {
            my ($body, @servers) = @{ $bodies{$kind} };
            my $name = "big_$place";
            my $shown = '200 ' . join '', map { "server $_\n" } @servers;
            my $good = $kind eq 'JSON' ? '200 {"status":200}' : '200 success';
            is(told('POST', "/$place/upstream/$name", $body, port => $places), $good, "$place, $kind");
            ok(told('GET', "/upstream/$name") eq $shown, 'all of it') or next;
            is(told('DELETE', "/upstream/$name"), '200 success', 'deleted');
            my @expect = (headers => { Expect => '100-continue' });
            is(told('POST', "/$place/upstream/$name", $body, port => $places, @expect), $good, 'after "100 Continue"');
            ok(told('GET', "/upstream/$name") eq $shown, 'all of it');
            is(told('DELETE', "/upstream/$name"), '200 success', 'deleted');
            is(chunked("/$place/upstream/$name", $body), $good, 'in chunks');
            ok(told('GET', "/upstream/$name") eq $shown, 'all of it');
            is(told('DELETE', "/upstream/$name"), '200 success', 'deleted');
        }
        my $long = "server $b;\n" . '# ' . 'x' x 100_000 . "\n" x 50_000 . '  zone x;';
        is(told('POST', "/$place/upstream/app", $long, port => $places),
            qq{400 add server failed: line 50002, column 3: "zone" is not available in a posted list yet, $directives},
            "$place: a mistake at the end");
        is(chunked("/$place/upstream/app", "server $b weight=x;"),
            '400 add server failed: line 1, column ' . (9 + length $b) . ': invalid value in "weight=x", expected 0 to 65535', 'in chunks');
        unchanged('nothing changed');
    }
    refused('POST', '/upstream/app', 'server 127.0.0.1;' x 100_001,
        '400 add server failed: line 1, column 1700001: too many servers, expected at most 100000');
    my $temporary = join ' ', glob $t->testdir . '/client_body_temp/*';
    is($temporary, '', 'no temporary file is left');
};

# Some bytes at a time.
sub chunked {
    my ($path, $body) = @_;
    my $connection = http_connect($places);
    my $size = 1 + int(length($body) / 7);
    $connection->send("POST $path HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    for (my $at = 0; $at < length $body; $at += $size) {
        my $part = substr $body, $at, $size;
        $connection->send(sprintf "%x\r\n%s\r\n", length $part, $part);
    }
    $connection->send("0\r\n\r\n");
    my $answer = $connection->receive('POST', 30);
    return "$answer->{status} $answer->{body}";
}

subtest 'what nginx itself refuses' => sub {
    my $status = sub {
        my ($method, $path, $body, @opt) = @_;
        my $answer = ask($method, $path, $body, port => $places, @opt);
        return "$answer->{status} " . ($answer->{body} =~ m{<title>(.*)</title>} ? $1 : $answer->{body});
    };
    my $list = "server $b;";
    my $padded = $list . ' ' x (1024 - length $list);
    is($status->('POST', '/small/upstream/app', "$padded "), '413 413 Request Entity Too Large', 'a body over client_max_body_size');
    is(chunked('/small/upstream/app', "$padded " x 4) =~ s/ .*//sr, 413, 'in chunks');
    for my $method (qw(POST PUT)) {
        is($status->($method, '/denied/upstream/app', $list), '403 403 Forbidden', "deny: $method");
    }
    is($status->('DELETE', '/denied/upstream/app'), '403 403 Forbidden', 'deny: DELETE');
    is($status->('GET', '/denied/list'), '403 403 Forbidden', 'deny: GET');
    is($status->('POST', '/secret/upstream/app', $list), '401 401 Authorization Required', 'auth_basic');
    my @password = map { [ headers => { Authorization => 'Basic ' . encode_base64("user:$_", '') } ] } 'wrong', 'password';
    is($status->('POST', '/secret/upstream/app', $list, @{ $password[0] }),
        '401 401 Authorization Required', 'a wrong password');
    is(ask('POST', '/secret/upstream/app', $list, port => $places)->{headers}{'www-authenticate'}, 'Basic realm="dyups"',
        'asked for one');
    is($status->('POST', '/limited/upstream/app', $list), '403 403 Forbidden', 'limit_except: POST');
    is($status->('DELETE', '/limited/upstream/app'), '403 403 Forbidden', 'limit_except: DELETE');
    is($status->('GET', '/limited/upstream/app'), "200 server $a\nserver $b\n", 'limit_except: GET');
    for my $chunks ("zz\r\nserver\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "-1\r\n\r\n") {
        my $connection = http_connect($interface);
        $connection->send("POST /upstream/app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n$chunks");
        like($connection->receive('POST', 10)->{status}, qr/^4\d\d$/, 'bad chunks ' . printable($chunks));
    }
    for my $body ('', 'server', $list, "$list\n# " . 'x' x 100_000) {
        my $connection = http_connect($interface);
        $connection->send("POST /upstream/app HTTP/1.1\r\nHost: a\r\nContent-Length: " . (1 + length $body) . "\r\n\r\n$body");
        $connection->close;
    }
    unchanged('nothing changed, also by requests that were given up');

    my $good = sub { is($status->(@_[ 1 .. $#_ ]), '200 success', $_[0]) };
    $good->('a body as large as can be', 'POST', '/small/upstream/made', $padded);
    $good->('allow', 'POST', '/allowed/upstream/made', $list);
    $good->('the password', 'PUT', '/secret/upstream/made', $list, @{ $password[1] });
    $good->('limit_except with allow: POST', 'POST', '/some/upstream/made', "server $a;");
    is(told('GET', '/upstream/made'), "200 server $a\n", 'is done');
    $good->('limit_except with allow: DELETE', 'DELETE', '/some/upstream/made');
    unchanged('as before');
};

subtest 'an interface for reading' => sub {
    for my $place (qw(read read_some)) {
        for my $method (qw(POST PUT PATCH DELETE HEAD OPTIONS BREW)) {
            refused($method, "/$place$_", "server $b;", '405 ', 'GET', port => $places)
                for '/upstream/app', '/upstream/app/server', "/upstream/app/server/$a", '/upstream/static/reset', '/list', '/a/b', '/';
        }
        is(told('GET', "/$place$_", undef, port => $places), told('GET', $_), "GET $_")
            for '/list', '/detail', '/upstream/app', '/upstream/app?format=json', '/upstream/unknown', '/x';
        is(told('GET', "/$place/status", undef, port => $places) =~ s/ .*//sr, 200, 'GET /status');
    }
};

subtest 'small things' => sub {
    is(told('GET', '/upstream/app', 'server 127.0.0.1:1;'), "200 server $a\nserver $b\n", 'GET with a body, which is read away');
    my $connection = http_connect($interface);
    is(told('GET', '/upstream/app', 'x' x 1000, connection => $connection), "200 server $a\nserver $b\n",
        'on a connection that is kept');
    is(told('POST', '/upstream/app', 'x', connection => $connection) =~ s/:.*//sr, '400 add server failed', 'a refusal keeps it');
    is(told('PATCH', '/upstream/app', 'x' x 1000, connection => $connection), '405 ', 'also where no body is wanted');
    is(told('BREW', '/upstream/app', 'x' x 1000, connection => $connection), '405 ', 'whatever the method');
    is(told('POST', '/list/app', 'x' x 1000, connection => $connection), "404 $api_text", 'or path');
    is(told('GET', '/upstream/app', undef, connection => $connection), "200 server $a\nserver $b\n", 'and the next is answered');

    # What has no body leaves none on the connection.
    for (['HEAD', '/list', undef, 405], ['HEAD', '/list?format=json', undef, 405], ['POST', '/upstream/app', '', 204]) {
        my ($method, $path, $body, $status) = @$_;
        my $kept = http_connect($interface);
        is(ask($method, $path, $body, connection => $kept)->{status}, $status, "$method $path");
        is(ask('GET', '/upstream/app', undef, connection => $kept)->{raw} =~ s/\r\n.*//sr, 'HTTP/1.1 200 OK', 'the next answer follows');
    }

    # Several in one go.
    my @requests = map { "POST /upstream/piped HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\nserver 127.0.0.1:100$_;" } 1 .. 5;
    $connection = http_connect($interface);
    $connection->send(join('', @requests) . "GET /upstream/piped HTTP/1.1\r\nHost: a\r\n\r\n");
    is($connection->receive('POST')->{body}, 'success', "pipelined $_") for 1 .. 5;
    is($connection->receive('GET')->{body}, "server 127.0.0.1:1005\n", 'in their order');
    is(told('DELETE', '/upstream/piped', 'with a body'), '200 success', 'deleted');
    unchanged('as before');
};

subtest 'no memory for a list' => sub {
    my $tight = $t->another_nginx(<<'EOT');
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upsync_zone 128k;
    server {
        listen 127.0.0.1:%%PORT_3%% reuseport;
        location / { dyups_interface; }
    }
}
EOT
    $tight->run;
    my $on = sub { told(@_[ 0 .. 2 ], port => $t->port(3)) };
    is($on->('POST', '/upstream/x', "server $a;"), '200 success', 'one');
    my $before = $on->('GET', '/detail?format=json');
    my $large = join '', map { "server 127.0.0.1:$_;" } 1 .. 5000;
    my $full = 'out of memory: no memory in the shared zone, raise "upsync_zone"';
    for my $name (qw(x y)) {
        is($on->('POST', "/upstream/$name", $large), "500 $full", "$name: 5,000 servers are too many");
        is($on->('POST', "/upstream/$name?format=json", $large),
            '500 {"status":500,"msg":' . JSON::PP->new->allow_nonref->encode($full) . '}', 'as JSON');
        is($on->('GET', '/detail?format=json'), $before, 'nothing changed');
    }
    is($on->('POST', '/upstream/x', "server $b;"), '200 success', 'fewer are not');
    my $made = 0;
    $made++ while $made < 5000 && $on->('POST', "/upstream/y$made", "server $b;") eq '200 success';
    cmp_ok($made, '<', 5000, "nor are names without end: $made");
    is($on->('POST', '/upstream/z', "server $b;"), "500 $full", 'then the zone is full');
    is(scalar(() = $on->('GET', '/list') =~ /^y\d+$/mg), $made, 'all that were made are there');
    is($on->('DELETE', '/upstream/y0'), '200 success', 'one goes');
    is($on->('POST', '/upstream/z', "server $b;"), '200 success', 'another comes');
    ok($tight->stop, 'ends');
};

subtest 'names from hostile requests' => sub {
    my @names = ('', '/dyups', 'dyups', '_dyups_upstream_sandbox_', '.', '..', '...', '../x', '/', '//', ':', '::', ':80', 'a:', 'a:b',
        'a:0', 'a:65536', 'a:99999999999999999999', 'a:1:2', '[', '[]', '[::', '[::]x', 'a b', "a\tb", "\xff\xfe", "\xc3\xa9",
        "caf\xe9", '%00', '%2fdyups', '$host', '${host}', '{', '}', ';', "'", '"', '#', '?', '\\', '*', '0.0.0.0:0', '-', '_',
        'a..b', 'app/', 'app;', 'app:', 'unix:', 'unix:/nowhere', 'unix:/nowhere:', 'upstream:static', 'x' x 255, 'X' x 256,
        'x' x 4000, 'x.' x 2000, '[' x 300, "\x01", "\x7f", "\x80" x 255);
    my %statuses;
    for my $name (@names) {
        my $label = printable($name);
        # nginx itself refuses some hosts, and takes what is before a slash or a last colon.
        my $not_found = $name =~ /^app/ ? qr/^(?:200|400|500|502)$/ : qr/^(?:400|500|502)$/;
        for my $uri ('/', '/http_host', '/by_host') {
            my $status = hostile($uri, $name);
            $statuses{$uri}{$status}++;
            like($status, $uri eq '/by_host' ? qr/^(?:200|400)$/ : $not_found, "$uri: host $label");
        }
        is(hostile('/by_name', 'a', $name), 200, "dyups \$http_x_name: $label");
        like(hostile('/name', 'a', $name), $not_found, "proxy_pass http://\$http_x_name: $label");
        next if $name =~ m{[\s/?#]} || $name eq '';
        like(hostile("http://$name/by_host", 'a'), qr/^(?:200|400)$/, "a whole URI: $label");
    }
    is(hostile('/by_host', undef), 400, 'no host at all');
    is(hostile('/by_name', 'a'), 200, 'no name at all');
    is(http_get($traffic, '/by_host', headers => { Host => 'APP' })->{status}, 200, 'a good one');
    for my $uri (sort keys %statuses) {
        note "$uri: ", join ', ', map { "$statuses{$uri}{$_} times $_" } sort keys %{ $statuses{$uri} };
    }
    is_deeply([ sort $t->workers ], [ sort @workers ], 'no worker died');
    is(&state =~ s/"(?:requests|failures)":\d+//gr, $state =~ s/"(?:requests|failures)":\d+//gr, 'nothing changed');
    $state = &state;
};

# The code of an answer.
sub hostile {
    my ($uri, $host, $name) = @_;
    my $connection = http_connect($traffic);
    my $request = "GET $uri HTTP/1.1\r\n" . (defined $host ? "Host: $host\r\n" : '') . (defined $name ? "X-Name: $name\r\n" : '');
    $connection->send("${request}Connection: close\r\n\r\n");
    my $answer = $connection->receive('GET', 10);
    return $answer->{error} // $answer->{status};
}

# What a key may hang on; not all of them have a value when a server is chosen.
my @variables = (
    qw(arg_a arg_ args binary_remote_addr body_bytes_sent bytes_sent connection connection_requests connection_time
    content_length content_type cookie_a cookie_ document_root document_uri host hostname http_host http_ http_x
    https is_args limit_rate msec nginx_version pid pipe proxy_protocol_addr proxy_protocol_port proxy_protocol_server_addr query_string realpath_root remote_addr
    remote_port remote_user request request_body request_body_file request_completion request_filename request_id
    request_length request_method request_time request_uri scheme sent_http_content_type sent_http_location
    sent_http_x sent_http_ sent_trailer_x server_addr server_name server_port server_protocol status
    tcpinfo_rtt time_iso8601 time_local upstream_addr upstream_bytes_received upstream_bytes_sent
    upstream_cache_status upstream_connect_time upstream_cookie_a upstream_header_time upstream_http_server
    upstream_http_ upstream_response_length upstream_response_time upstream_status upstream_trailer_x uri mapped
    unused 0));

subtest 'keys of every variable' => sub {
    my $length = 0;
    for my $key ((map { "\$$_" } @variables), '${arg_a}', '$uri-${mapped}', join '', map { "\$$_" } @variables[ 0 .. 31 ]) {
        my $body = "hash $key" . ($length++ % 2 ? ' consistent' : '') . "; server $a; server $b;";
        my $answer = told('POST', '/upstream/keyed', $body);
        # A system may lack what it tells.
        next if $key =~ /tcpinfo|^\$0/ && $answer =~ /^400 .*unknown variable/;
        is($answer, '200 success', "$key: posted");
        my $asked = sub { http('POST', $traffic, '/some?a=b', host => 'keyed', body => 'body', headers => { Cookie => 'a=b' }) };
        is_deeply([ map { $asked->()->{status} } 1 .. 3 ], [ (200) x 3 ], "$key: served");
    }
    is_deeply([ sort $t->workers ], [ sort @workers ], 'no worker died');
    # nginx itself finds these by their name only while it reads nginx.conf.
    like(told('POST', '/upstream/keyed', "hash \$$_; server $b;"), qr/^400 .*: unknown variable "\$$_" in "hash"/, "$_: refused")
        for qw(proxy_host proxy_port proxy_add_x_forwarded_for);
    is(told('DELETE', '/upstream/keyed'), '200 success', 'deleted');
    unchanged('the others are as before');
};

subtest "$times bodies of any bytes" => sub {
    my %codes;
    for my $number (1 .. $times) {
        my ($method, $path, $body) = random_request();
        my @type = rand() < 0.2 ? (headers => { 'Content-Type' => 'application/json' }) : ();
        my $answer = ask($method, $path, $body, @type);
        my $code = $answer->{error} // $answer->{status};
        $codes{$code}++;
        my $is_right = $code == 400 ? $answer->{body} =~ /^(?:add server failed: line|\{"status":400,"msg":")/
            : $code == 200 ? $answer->{body} =~ /^(?:success|\{"status":200\})$/
            : $code == 204 ? $body eq '' : $code == 404 && $answer->{body} =~ /not found/;
        ok($is_right, "$number: $method $path " . printable($body)) or diag "$code $answer->{body}";
        next unless $code eq '200';
        my $list = told('GET', '/upstream/random');
        like($list, qr{^200 (?:server (?:\d+\.\d+\.\d+\.\d+:\d+|\[[0-9a-f:.]+\]:\d+|unix:/\S+)\n)+$}, "$number: a good list");
    }
    note join ', ', map { "$codes{$_} times $_" } sort keys %codes;
    cmp_ok($codes{200} // 0, '>', $times / 20, 'some are good');
    cmp_ok($codes{400} // 0, '>', $times / 4, 'many are not');
    is_deeply([ sort $t->workers ], [ sort @workers ], 'no worker died');
    is(told('DELETE', '/upstream/random') =~ s/^404 not found uptream$/200 success/r, '200 success', 'deleted');
    unchanged('the others are as before');
};

sub one_of { return $_[ rand @_ ] }

# Words that are right more often than not, so that what is behind them is read, too.
sub random_request {
    my @addresses = ('127.0.0.1:1', '127.0.0.1', '[::1]:2', '[::]', 'unix:/a', 'upstream:static', 'upstream:none',
        '1.2.3.4:65535', '1.2.3:4', '255.255.255.255:1');
    my @good = qw(down backup drain weight=5 weight=0 max_fails=3 max_fails=0 max_conns=7 fail_timeout=1m slow_start=1m
        slow_start=500ms);
    my @words = (@good, @good, qw(weight= slow_start= down=on down=off drain=on =), "\0", '"', '{', '}', '$x', "\\", "\xff", "\xc3\xa9", '#');
    my $junk = sub { join '', map { chr int rand 256 } 1 .. rand 40 };
    my $blank = sub { one_of(' ', ' ', ' ', "\n", "\t", "\r\n", " # x;\n") };
    my $statement = sub {
        my $directive = rand() < 0.9 ? 'server' : one_of('keepalive', 'zone', $junk->());
        my @rest = map { one_of(rand() < 0.9 ? @good : @words) } 1 .. (rand() < 0.5 ? 0 : rand 4);
        return join($blank->(), $directive, one_of(@addresses), @rest) . (rand() < 0.95 ? ';' : '') . $blank->();
    };
    my @keys_of_hash = qw($uri ${uri} $arg_a-${arg_b} a $ ${ $1 $nosuch $request_body $upstream_addr $sent_http_x);
    my $method = sub {
        my @rest = map { one_of(qw(two least_conn least_time=header header last_byte consistent x), $junk->()) } 1 .. rand 3;
        return '' if rand() < 0.6;
        return one_of('least_conn', 'ip_hash', 'hash $uri', 'hash $arg_a consistent', 'random two', 'least_time header',
            join $blank->(), 'hash', one_of(@keys_of_hash), @rest) . ';' . $blank->() if rand() < 0.8;
        return join($blank->(), one_of(qw(least_conn ip_hash hash random least_time upsync_lb)), @rest) . ';';
    };
    my @hosts = map { qq("$_") } '127.0.0.1', '::1', 'unix:/a', 'a b', 'upstream:static';
    my $value = sub { one_of(0, 1, 80, 65536, -1, '"80"', 'null', 'true', '"\u0000"', '[]', '{}', '1e9', one_of(@hosts)) };
    my @keys = qw(host port weight max_fails fail_timeout max_conns slow_start down drain backup other);
    my $json_server = sub {
        my %server = (host => '"127.0.0.1"', port => 1 + int rand 65535);
        $server{ one_of(@keys) } = $value->() for 1 .. (rand() < 0.5 ? 0 : rand 3);
        '{' . join(',', map { qq("$_":$server{$_}) } sort keys %server) . '}';
    };
    my $json = sub {
        my $level = sub { '{"servers":[' . join(',', map { $json_server->() } 0 .. rand 3) . ']}' };
        my $array = sub { '{"cluster":[' . join(',', map { $level->() } 0 .. rand 2) . ']}' };
        my $object = sub { '{"cluster":{"a":' . $level->() . '}}' };
        return one_of($level, $array, $object, $json_server, $value)->();
    };
    my $statements = sub { join '', $method->(), map({ $statement->() } 0 .. rand 4), rand() < 0.1 ? $method->() : () };
    my $method_and_path = one_of(['POST', ''], ['POST', ''], ['PUT', ''], ['POST', '/server'], ['PATCH', '/server/127.0.0.1:1']);
    my $changes = sub { join $blank->(), map { one_of(@words) } 0 .. rand 3 };
    my $body;
    do {
        my $make = $method_and_path->[0] eq 'PATCH' ? one_of($changes, $changes, $json, $junk)
            : $method_and_path->[1] ? one_of($statement, $statement, $json_server, $junk)
            : one_of($statements, $statements, $json, $junk);
        $body = $make->();
        # Some bytes are lost, doubled or others.
        for (1 .. (rand() < 0.6 ? 0 : rand 4)) {
            my $at = int rand(1 + length $body);
            substr $body, $at, int rand 2, one_of('', chr int rand 256, ';', '"', $junk->());
        }
        # No name of a host: who knows how long its look-up takes.
    } while $body =~ /server\s+(?!unix:|upstream:)[^;\s]*[a-z]/i || $body =~ /"host":"(?!unix:|upstream:|a b)[^"]*[g-z]/i;
    return ($method_and_path->[0], "/upstream/random$method_and_path->[1]", $body);
}

subtest 'clients that do not wait for the answer' => sub {
    for my $number (1 .. 100) {
        my $body = 'server 127.0.0.1:' . (1000 + $number) . ';';
        my $connection = http_connect($interface);
        $connection->send("POST /upstream/hasty HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\n$body");
        $connection->close;
    }
    wait_until { told('GET', '/upstream/hasty') =~ /^200 server 127\.0\.0\.1:1\d\d\d\n$/ } 10, 'a list is made';
    is(told('POST', '/upstream/slow', "server $b;"), '200 success', 'others are served');
};

is_deeply([ sort $t->workers ], [ sort @workers ], 'the workers are those of the beginning');
$t->done;
