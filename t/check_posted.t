#!/usr/bin/perl

# Checks that come with posted lists, or that these get from nginx.conf: what is asked, shown, kept and
# refused.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Checks;

plan(skip_all => 'no openssl') unless `openssl version 2>/dev/null`;

my $t = Test::Upsync->new;
my $dir = $t->testdir;
my $authority = authority($t, 'authority');
my $certificate = $authority->issue('app.example');
my $state = "$dir/state";

my $backends = $t->backends(3, server => 'location /503 { return 503; }');
my ($a, $b, $c) = $backends->addresses;
my $tls = $t->backends(1, options => 'ssl',
    server => "ssl_certificate $certificate->{certificate}; ssl_certificate_key $certificate->{key};");
my ($secure) = $tls->addresses;
# Nobody listens there as long as the test runs.
my $dead = '127.0.0.1:' . $t->free_port;
my $often = 'interval=200 rise=1 fall=1 timeout=20000';
my @names;

configure();
$t->run;
wait_until { $t->workers == 2 } 10 or die "no two workers\n";

sub configure {
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    dyups_state_path $state;
    dyups_upstream any;
    upstream any {
        dyups \$host;
        check $often type=tcp;
    }
    upstream block {
        server $a;
        check $often type=http;
        check_http_send "HEAD /of_block HTTP/1.0\\r\\n\\r\\n";
    }
    upstream plain {
        server $a;
    }
    upstream secure {
        server $secure;
        check $often type=https;
        check_ssl_verify on;
        check_ssl_name app.example;
        check_ssl_trusted_certificate $authority->{certificate};
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location = /check_status { check_status; }
        location / { proxy_pass http://\$host; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
EOF
    return;
}

sub api {
    my ($method, $path, $body) = @_;
    my $answer = http($method, $t->port(1), $path, defined $body ? (body => $body) : ());
    return "$answer->{status} $answer->{body}";
}

sub post {
    my ($name, $body) = @_;
    push @names, $name;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(api('POST', "/upstream/$name", $body), '200 success', "$name is posted");
}

# With a path of its own the requests of a check can be told from all others.
sub check_of {
    my ($name, $more) = @_;
    return qq{check $often type=http @{[ $more // '' ]}; check_http_send "HEAD /$name HTTP/1.0\\r\\n\\r\\n"; }
        . 'check_http_expect_alive http_2xx;';
}

sub host_port {
    my ($host, $port) = split /:/, $_[0];
    return { host => $host, port => $port + 0 };
}

sub shown { return json(http_get($t->port(1), "/upstream/$_[0]?format=json")->{body}) }

sub state_of {
    my ($name, $address) = @_;
    my $row = checked($t, $name)->{$address} or return 'not checked';
    return "$row->{status} $row->{type}";
}

# What backends were asked by the check with this path: address to how often.
sub probes {
    my ($path, $since) = @_;
    my %probes;
    $probes{ $_->{address} }++ for grep { $_->{uri} eq "/$path" } $backends->requests($since);
    return \%probes;
}

# Tests that the check with this path asks nobody any more, or none of these servers.
sub nobody_asks {
    my ($path, $name, @servers) = @_;
    # Those under way may end, and those of an interval that had begun.
    sleep 0.5;
    my $since = time;
    sleep 0.8;
    my $probes = probes($path, $since);
    @servers = keys %$probes unless @servers;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply({ map { $_ => $probes->{$_} } grep { $probes->{$_} } @servers }, {}, $name);
}

subtest 'a list with checks' => sub {
    my $name = 'posted.example';
    my $mark = $t->log_mark;
    post($name, "server $a; server $dead;\n" . check_of($name));
    wait_checked($t, $name, { $a => 'up', $dead => 'down' }, 20, 'one is up, one down');
    is(state_of($name, $a), 'up http', 'with the type');
    wait_until { checked($t, $name)->{$a}{rise} >= 5 && flips($t, $name, $mark) } 20, 'time and again';
    my %flips = map { shift(@$_) => "@$_" } flips($t, $name, $mark);
    is($flips{$a}, 'up', 'said');
    is_deeply([ grep { $_->[0] eq $a } flips($t, $name, $mark) ], [ [ $a, 'up' ] ], 'once');
    # It began down, and stays so.
    ok(!(grep { $_->[0] eq $dead && $_->[1] eq 'up' } flips($t, $name, $mark)), 'the other was never up');
    my %methods = map { ($_->{method} => 1) } grep { $_->{uri} eq "/$name" } $backends->requests;
    is_deeply(\%methods, { HEAD => 1 }, 'by the request that was posted');
    my %bodies = map { http_get($t->port(0), '/', host => $name)->{body} => 1 } 1 .. 10;
    is_deeply(\%bodies, { "hello world by $a\n" => 1 }, 'requests go to the one that is up');
    is_deeply(checked($t, 'plain'), {}, 'who has no checks is not shown');
};

subtest 'what is shown' => sub {
    my $name = 'shown.example';
    post($name, "server $a;\n" . check_of($name, 'default_down=false') . <<'EOF');
check_http_expect_body !~ "a\s\"b\"|c{2};";
check_keepalive_requests 7;
check_fastcgi_param REQUEST_METHOD GET;
check_fastcgi_param "A B" '';
check_ssl_verify on; check_ssl_name app.example; check_fail_open 50%;
EOF
    my %check = (
        type => 'http', interval => 200, rise => 1, fall => 1, timeout => 20000, default_down => JSON::PP::false,
        http_send => "HEAD /$name HTTP/1.0\r\n\r\n", http_expect_alive => ['http_2xx'],
        http_expect_body => '!~ a\s"b"|c{2};', keepalive_requests => 7,
        fastcgi_param => [ [ 'REQUEST_METHOD', 'GET' ], [ 'A B', '' ] ],
        ssl_verify => JSON::PP::true, ssl_name => 'app.example', fail_open => 50,
    );
    my $shown = shown($name);
    is_deeply($shown->{check}, \%check, 'JSON') or diag explain $shown;
    is_deeply(shown('posted.example')->{check}{http_expect_alive}, ['http_2xx'], 'of another');
    ok(!exists shown($_)->{check}, "$_ has none of its own") for qw(block plain);

    my $json = JSON::PP->new->encode({ servers => [ host_port($a) ], check => $shown->{check} });
    is(api('POST', '/upstream/again.example', $json), '200 {"status":200}', 'it can be posted as it is shown');
    push @names, 'again.example';
    is_deeply(shown('again.example')->{check}, \%check, 'and is the same');
};

subtest 'changes of single servers' => sub {
    my $name = 'single.example';
    post($name, "server $a;" . check_of($name));
    wait_checked($t, $name, { $a => 'up' }, 20, 'one');
    my $check = shown($name)->{check};
    is(api('POST', "/upstream/$name/server", "server $b;"), '200 success', 'another');
    wait_checked($t, $name, { $a => 'up', $b => 'up' }, 20, 'is checked, too');
    is(api('PATCH', "/upstream/$name/server/$b", 'weight=5'), '200 success', 'another weight');
    is_deeply(shown($name)->{check}, $check, 'the checks stay');
    is(api('DELETE', "/upstream/$name/server/$a"), '200 success', 'one leaves');
    is_deeply([ keys %{ checked($t, $name) } ], [$b], 'it is not shown any more');
    sleep 0.5;
    my $since = time;
    wait_until { (probes($name, $since)->{$b} // 0) >= 3 } 20, 'the other is asked';
    is(probes($name, $since)->{$a}, undef, 'it is not');
    is_deeply([ flips($t, $name) ], [ [ $a, 'up' ], [ $b, 'up' ] ], 'each verdict is said once');
    is(api('DELETE', "/upstream/$name"), '200 success', 'all go');
    is_deeply(checked($t, $name), {}, 'nothing is shown');
    nobody_asks($name, 'and nobody is asked');
};

# A verdict holds as long as the same is asked, and is not asked for again meanwhile.
subtest 'another list' => sub {
    my $name = 'other.example';
    my $rarely = sub { my $check = check_of($_[0], $_[1]); $check =~ s/interval=200/interval=24d/; return $check };
    post($name, "server $a;" . check_of($name));
    wait_checked($t, $name, { $a => 'up' }, 20, 'a server is up');
    post($name, "server $a weight=3;" . check_of($name));
    is(state_of($name, $a), 'up http', 'it stays so with another weight');
    post($name, "server $a; server $b;" . $rarely->($name));
    is(state_of($name, $a), 'up http', 'and when the same is asked less often');
    is(state_of($name, $b), 'down http', 'not so a server that nobody has asked');
    nobody_asks($name, 'they are asked less often');
    post($name, "server $a; server $b;" . check_of($name));
    wait_checked($t, $name, { $a => 'up', $b => 'up' }, 20, 'or more often');
    post($name, "server $a; server $b; server $c;" . $rarely->('503', 'default_down=false'));
    is(state_of($name, $a), 'up http', 'when something else is asked the verdict holds');
    is(state_of($name, $c), 'up http', 'and a new server is what default_down says');
    my $mark = $t->log_mark;
    post($name, "server $a;" . check_of('503'));
    wait_until { flips($t, $name, $mark) } 20, 'until there is another';
    is_deeply([ flips($t, $name, $mark) ], [ [ $a, 'down', 'status 503' ] ], 'which is said');
    is(state_of($name, $a), 'down http', 'and shown');
    post($name, "server $a;" . check_of($name, 'default_down=false'));
    wait_checked($t, $name, { $a => 'up' }, 20, 'asked as in the beginning');
    post($name, "server $a; check $often type=tcp;");
    wait_checked($t, $name, { $a => 'up' }, 20, 'another type');
    is(state_of($name, $a), 'up tcp', 'is shown');
};

subtest 'a list without checks' => sub {
    wait_checked($t, 'block', { $a => 'up' }, 20, 'what nginx.conf has is checked');
    post('block', "server $b; server $dead;");
    wait_checked($t, 'block', { $b => 'up', $dead => 'down' }, 20, 'as the block says');
    is(state_of('block', $b), 'up http', 'with its type');
    cmp_ok(probes('of_block')->{$b}, '>', 0, 'and its request');
    is_deeply([ sort keys %{ checked($t, 'block') } ], [ sort $b, $dead ], 'all of the list is shown');
    my $begun = time;
    nobody_asks('of_block', 'the others are not asked any more', $a);
    cmp_ok(probes('of_block', $begun)->{$b}, '>', 0, 'while these are');

    post('block', "server $b;" . check_of('own_of_block'));
    wait_until { probes('own_of_block')->{$b} } 20, 'own checks in place of these';
    nobody_asks('of_block', 'not beside them');
    is(api('POST', '/upstream/block/reset'), '200 success', 'nginx.conf again');
    wait_checked($t, 'block', { $a => 'up' }, 20, 'with its checks');
    is(shown('block')->{check}, undef, 'none of its own');
    my $since = time;
    wait_until { probes('of_block', $since)->{$a} } 20, 'by its request';

    post('templated.example', "server $a; server $dead;");
    wait_checked($t, 'templated.example', { $a => 'up', $dead => 'down' }, 20, 'a name, as its template says');
    is(state_of('templated.example', $a), 'up tcp', 'with its type');

    post('plain', "server $a; server $dead;");
    is_deeply(checked($t, 'plain'), {}, 'a block without checks: no checks');
    post('plain', "server $a; server $dead;" . check_of('plain'));
    wait_checked($t, 'plain', { $a => 'up', $dead => 'down' }, 20, 'own ones');
    post('plain', "server $a; server $dead;");
    is_deeply(checked($t, 'plain'), {}, 'until there are none again');
    nobody_asks('plain', 'nobody is asked');
};

# Files are of nginx.conf; so is what they are good for.
subtest 'TLS' => sub {
    my $https = "server $secure; check $often type=https default_down=false; check_ssl_verify on; check_ssl_name app.example;";
    my $body = $https . 'check_http_send "HEAD /secure HTTP/1.0\r\n\r\n";';
    my $mark = $t->log_mark;
    post('secure', $body);
    wait_until { grep { $_->{uri} eq '/secure' } $tls->requests } 20, 'a list of a block trusts whom the block trusts';
    wait_until { checked($t, 'secure')->{$secure}{rise} >= 3 } 20, 'time and again';
    is(state_of('secure', $secure), 'up https', 'it is up');
    post('secure', $body =~ s/app\.example/other.example/r);
    wait_checked($t, 'secure', { $secure => 'down' }, 20, 'not with another name');
    post('secure.example', $body);
    wait_checked($t, 'secure.example', { $secure => 'down' }, 20, 'another list trusts whom the system trusts');
    wait_until { flips($t, 'secure.example', $mark) && grep { $_->[1] eq 'down' } flips($t, 'secure', $mark) } 10;
    is((grep { $_->[1] eq 'down' } flips($t, 'secure', $mark))[-1][2], 'certificate does not match the name', 'the name');
    like((flips($t, 'secure.example', $mark))[0][2], qr/^certificate not verified \(error (?:20|21)\)$/, 'the certificate');
    post('secure.example', $body =~ s/verify on/verify off/r);
    wait_checked($t, 'secure.example', { $secure => 'up' }, 20, 'it need not');
};

subtest 'what is refused' => sub {
    my $file = '"%s" cannot be posted, expected it in the block of the upstream in nginx.conf';
    my $time = '1 to 2147483647 milliseconds or a time such as 5s';
    my $types = 'tcp, http, https, ssl_hello, mysql, ajp, fastcgi, grpc or grpcs';
    my @bodies = (
        [ "server $a;\ncheck interval=0;", qq{line 2, column 7: invalid value in "interval=0" of "check", expected $time} ],
        [ "server $a;\n check type=udp;", qq{line 2, column 8: invalid value in "type=udp" of "check", expected $types} ],
        [ "server $a; \ncheck port=0;", 'line 2, column 7: invalid value in "port=0" of "check", expected 1 to 65535, or no "port" for the server\'s own' ],
        [ "server $a;\ncheck fast;", 'line 2, column 7: unexpected "fast" in "check", expected interval=TIME, rise=N, fall=N, timeout=TIME, '
            . 'default_down=true|false, type=TYPE or port=N' ],
        [ "check;\nserver $a;\ncheck;", 'line 3, column 1: duplicate "check", expected it once at most' ],
        [ "server $a;\ncheck rise=1 rise=2;", 'line 2, column 14: duplicate "rise", expected it once at most' ],
        [ "check;\ncheck_http_expect_alive 404;\ncheck_http_expect_alive 405;\nserver $a;",
            'line 3, column 1: duplicate "check_http_expect_alive", expected it once at most' ],
        [ "server $a;\ncheck_fail_open 5;", 'line 2, column 1: "check_fail_open" has no effect without "check", expected "check" beside it' ],
        [ "check;\ncheck_http_send \"\";\nserver $a;", 'line 2, column 17: unexpected "" in "check_http_send", expected one text, which is not empty' ],
        [ "check;\ncheck_http_send;\nserver $a;", 'line 2, column 1: no parameter after "check_http_send", expected one text, which is not empty' ],
        [ "check;\ncheck_http_expect_alive http_6xx;\nserver $a;", 'line 2, column 25: unexpected "http_6xx" in "check_http_expect_alive", '
            . 'expected http_1xx to http_5xx, codes from 100 to 599 and ranges such as 200-299' ],
        [ "check;\ncheck_http_expect_body pong;\nserver $a;", 'line 2, column 1: no parameter after "check_http_expect_body", '
            . 'expected "~ REGEX" or "!~ REGEX"' ],
        [ "check;\ncheck_http_expect_body ~ \"(\";\nserver $a;", qr/^(?:line \d+, column \d+: )?invalid regular expression in "check_http_expect_body": .*parenthesis/ ],
        [ "check;\ncheck_http_expect_body ~ a{2};\nserver $a;", qr/^line 2, column 26: unexpected "\{" in "\S*", expected the word in quotes$/ ],
        [ "check;\ncheck_http_send \"GET /;\nserver $a;", qr/^line 2, column 17: no " at the end of .*, expected a quote at either end$/s ],
        [ "check;\ncheck_http_send \"GET /\"x;\nserver $a;", qr/^line 2, column 17: unexpected "x" behind .*, expected a space or ";" there$/ ],
        [ "check;\ncheck_http_send \"\x01\";\nserver $a;", qr/^line 2, column 17: unexpected byte 0x01, expected/ ],
        [ "check interval=1s\nserver $a;", 'line 2, column 1: unexpected "server", expected ";" before it' ],
        [ 'check;', 'line 1, column 1: no server in the body, expected at least one' ],
        [ 'check', 'line 1, column 1: unexpected end after "check", expected ";"' ],
        [ join('', "server $a; check;", map { "\ncheck_fastcgi_param N$_ x;" } 1 .. 65),
            'line 66, column 1: too many "check_fastcgi_param", expected at most 64' ],
        (map { [ "server $a; check type=https;\n$_ /etc/passwd;", 'line 2, column 1: ' . sprintf $file, $_ ] }
            qw(check_ssl_certificate check_ssl_certificate_key check_ssl_trusted_certificate)),
        [ "server $a;\ncheck_concurrency 5;", qr/^line 2, column 1: unknown directive "check_concurrency", expected / ],
    );
    my $mark = $t->log_mark;
    for (@bodies) {
        my ($body, $expected) = @$_;
        my $answer = api('POST', '/upstream/refused.example', $body);
        my $name = substr $body =~ s/\n/ /gr, 0, 60;
        my $start = '400 add server failed: ';
        if (ref $expected) {
            my ($text) = $answer =~ /^\Q$start\E(.*)/s;
            like($text // $answer, $expected, $name);
        } else {
            is($answer, "$start$expected", $name);
        }
        my $json = http('POST', $t->port(1), '/upstream/refused.example?format=json', body => $body);
        my $msg = json($json->{body})->{msg} // 'none';
        is("$json->{status} " . $msg =~ s/^body invalid: //r, '400 ' . $answer =~ s/^\Q$start//r, 'the same as JSON');
    }
    my %objects = (
        '{"type":"udp"}' => qr/invalid value in \\?"type=udp\\?" of \\?"check\\?", expected \Q$types\E/,
        '{"interval":0}' => qr/"interval=0"/, '{"interval":-5}' => qr/interval/, '{"fast":true}' => qr/"fast" is no key of it, expected type, /,
        '{"default_down":"maybe"}' => qr/"default_down"/, '{"http_expect_body":"pong"}' => qr/check_http_expect_body/,
        '{"ssl_certificate":"/etc/passwd"}' => qr/"ssl_certificate" is no key of it/, '[]' => qr/check/, '"tcp"' => qr/check/,
    );
    my $server = JSON::PP->new->encode(host_port($a));
    for my $check (sort keys %objects) {
        my $answer = http('POST', $t->port(1), '/upstream/refused.example', body => qq({"servers":[$server],"check":$check}));
        is($answer->{status}, 400, "$check: 400");
        like(json($answer->{body})->{msg}, $objects{$check}, 'and why');
    }
    is(api('GET', '/upstream/refused.example'), '404 ', 'nothing of them is in force');
    is_deeply(checked($t, 'refused.example'), {}, 'nor asked');
    unlike($t->log($mark), qr/\[(?:alert|emerg|crit)\]/, 'nothing bad happened');
};

subtest 'a restart' => sub {
    my $name = 'kept.example';
    post($name, "server $a weight=2; server $dead;\n" . check_of($name) . q{check_http_expect_body !~ '"fault;"\s{2}';});
    # Nobody asks it before this test ends.
    post('unasked.example', "server $a; check interval=24d default_down=false type=http;");
    post('block', "server $b;" . check_of('kept_of_block'));
    wait_checked($t, $name, { $a => 'up', $dead => 'down' }, 20, 'before');
    my %before = map { $_ => shown($_)->{check} } @names, 'block';

    open my $file, '<', "$state/$name.conf" or die "$name.conf: $!\n";
    my $text = do { local $/; <$file> };
    is($text, <<"EOF", 'the file has them in the syntax of nginx');
upstream $name {
    check interval=200 rise=1 fall=1 timeout=20000 default_down=true type=http;
    check_http_send "HEAD /$name HTTP/1.0\\r\\n\\r\\n";
    check_http_expect_alive http_2xx;
    check_http_expect_body !~ "\\"fault;\\"\\\\s{2}";
    server $a weight=2 max_fails=1 fail_timeout=10s;
    server $dead weight=1 max_fails=1 fail_timeout=10s;
}
EOF
    my ($status, $output) = $t->nginx_t("%%TEST_GLOBALS%%\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n"
        . "include $state/$name.conf;\ninclude $state/shown.example.conf;\n}\n");
    is($status, 0, 'which reads it') or diag $output;

    ok($t->stop, 'nginx ends');
    my $since = time;
    $t->run;
    wait_until { $t->workers == 2 } 10;
    my %after = map { $_ => shown($_)->{check} } @names, 'block';
    is_deeply(\%after, \%before, 'the same checks');
    is(state_of('unasked.example', $a), 'up http', 'with their defaults');
    is(http_get($t->port(0), '/', host => 'unasked.example')->{status}, 200, 'which counts');
    wait_checked($t, $name, { $a => 'up', $dead => 'down' }, 20, 'and verdicts');
    wait_checked($t, 'block', { $b => 'up' }, 20, 'of a block, too');
    cmp_ok(probes($name, $since)->{$a}, '>', 0, 'by the same request');
    ok(probes('kept_of_block', $since)->{$b}, 'its own, not that of nginx.conf');
    my %flips = map { $_->[0] => 1 } grep { $_->[1] eq 'up' } flips($t, $name);
    is_deeply(\%flips, { $a => 1 }, 'said');
    is(http_get($t->port(0), '/', host => $name)->{body}, "hello world by $a\n", 'requests go where it is up');
};

subtest 'a reload' => sub {
    my $name = 'kept.example';
    wait_until { (checked($t, $name)->{$dead}{fall} // 0) > 5 } 20, 'it is known, and said, which is down';
    my $mark = $t->log_mark;
    ok($t->reload, 'reloaded');
    is(state_of($name, $a), 'up http', 'the verdict stays');
    my $since = time;
    wait_until { (probes($name, $since)->{$a} // 0) >= 3 } 20, 'and is asked for';
    is_deeply([ flips($t, $name, $mark) ], [], 'nothing new is said');
    is_deeply([ flips($t, 'block', $mark) ], [], 'nor of a block');
};

$t->done;
