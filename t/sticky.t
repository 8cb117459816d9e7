#!/usr/bin/perl

# nginx's own `sticky`, which it has from 1.29.6 on, over our balancer: the cookies that nginx alone
# gives, clients that stay with their server over changes of the list, and what becomes of them when
# it drains, fails or leaves.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::IP;
use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my ($status) = $t->nginx_t($t->globals(module => 0)
    . "\nevents {}\nhttp { upstream a { sticky cookie a; server 127.0.0.1:1; } }\n");
if ($status) {
    $t->{done} = 1;
    plan skip_all => 'this nginx has no "sticky"';
}

my $consul = $t->consul;
# Each is stopped alone. They make a session of the name that they are asked for.
my $session = 'add_header X-Tried $backend always; add_header Set-Cookie "session=$arg_new" always;';
my @backends = map { $t->backends(1, location => $session) } 0 .. 3;
my ($a, $b, $c, $d) = map { $_->addresses } @backends;
my $ipv6 = IO::Socket::IP->new(LocalHost => '::1', Listen => 1) ? '[::1]:' . $t->free_port : undef;
my $unix = 'unix:' . $t->testdir . '/a.sock';
my @special = $t->backends(0, listen => [ $unix, $ipv6 // () ])->addresses;
my $name = 'localhost:' . ($backends[3]->ports)[0];

# All kinds of servers, with nginx's own balancer and ours.
my $servers = join ' ', map { "server $_;" } $a, "$b weight=2", "$c max_fails=5", $name, @special;
my $three = "server $a; server $b; server $c;";
my $cookie = 'sticky cookie srv_id;';
my $follow = sub { "upsync %%CONSUL%%/v1/kv/$_[0]/ upsync_type=consul upsync_interval=20ms;" };
my %kinds = (
    lb => "upsync_lb roundrobin; $cookie $servers",
    before => "$cookie upsync_lb roundrobin; $servers",
    least => "least_conn; upsync_lb least_conn; $cookie $servers",
    kept => "$servers upsync_lb random; $cookie keepalive 4;",
    kept_below => "$servers keepalive 4; $cookie upsync_lb local 127.0.0.0/8 ::1;",
    hashed => "hash \$request_id; $cookie upsync_lb hash_modula; $servers",
    time => "$cookie least_time header; $servers",
    followed => $follow->('followed') . " $cookie",
    followed_least => "$cookie " . $follow->('followed') . ' least_conn; upsync_lb least_conn;',
    posted => "$cookie server $d;",
    posted_ring => "hash \$request_id consistent; $cookie server $d; keepalive 4;",
);
# A method behind `sticky` takes its place, as nginx warns.
$kinds{followed_least} = 'least_conn; upsync_lb least_conn; ' . $follow->('followed') . " $cookie";
my $learn = sub { "sticky learn create=\$upstream_cookie_session lookup=\$cookie_session zone=$_[0]:1m;" };
my %conf = (more => '', zone => '2m');

sub configure {
    %conf = (%conf, @_);
    my $upstreams = join "\n    ", map { "upstream $_ { $kinds{$_} }" } sort keys %kinds;
    my $locations = join "\n        ", map { "location /$_/ { proxy_pass http://$_; }" } sort keys %kinds;
    $t->write_file_expand('nginx.conf', <<"CONF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upsync_zone $conf{zone};
    dyups_upstream template;
    add_header X-Worker \$pid always;
    add_header X-Upstream \$upstream_addr always;
    proxy_connect_timeout 2s;
    $upstreams
    upstream plain { $cookie $servers }
    upstream template { dyups \$http_x_name; $cookie server $d; }
    upstream moving { upsync_lb roundrobin; $cookie $three }
    upstream consul { @{[ $follow->('consul') ]} $cookie }
    upstream learnt { upsync_lb roundrobin; @{[ $learn->('learnt') ]} $three }
    upstream learnt_consul { @{[ $follow->('consul') ]} @{[ $learn->('consul') ]} }
    $conf{more}
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location = /list { upstream_show; }
        location /plain/ { proxy_pass http://plain; }
        location /made/ { proxy_pass http://\$http_x_name; }
        location /template/ { proxy_pass http://template; }
        location /moving/ { proxy_pass http://moving; }
        location /consul/ { proxy_pass http://consul; }
        location /learnt/ { proxy_pass http://learnt; }
        location /learnt_consul/ { proxy_pass http://learnt_consul; }
        $locations
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
CONF
}

configure();
my ($traffic, $interface) = map { $t->port($_) } 0, 1;
my %all = map { ("followed/$_" => {}) } $a, $b, $c, $d, @special;
# Consul's keys have an address, and no name.
$consul->kv_put_many(\%all);
$consul->kv_put_many({ map { ("consul/$_" => {}) } $a, $b, $c });
$t->run;
wait_until { $t->workers == 2 } 10, 'two workers';

sub told {
    my ($method, $path, $body) = @_;
    my $answer = http($method, $interface, $path, body => $body, timeout => 20);
    return "$answer->{status} $answer->{body}";
}

# { server, cookie, status } of a request that has a cookie, or none.
sub ask {
    my ($uri, $value, %opt) = @_;
    my ($port, $key) = ($opt{port} // $traffic, $opt{key} // 'srv_id');
    my %headers = (%{ $opt{headers} // {} }, defined $value ? (Cookie => "$key=$value") : ());
    my $answer = http_get($port, $uri, headers => \%headers, timeout => 20);
    my ($server) = $answer->{body} =~ /^hello world by (\S+)\n$/;
    my ($given) = ($answer->{headers}{'set-cookie'} // '') =~ /srv_id=([^;,]*)/;
    return { server => $server // $answer->{error} // $answer->{status}, cookie => $given, worker => $answer->{headers}{'x-worker'},
        tried => $answer->{headers}{'x-upstream'} };
}

# A cookie of each server, by asking without one.
sub cookies {
    my ($uri, $number, %opt) = @_;
    my %cookies;
    for (1 .. 1000) {
        my $answer = ask($uri, undef, %opt);
        $cookies{ $answer->{server} }{ $answer->{cookie} // 'none' } = 1;
        last if keys %cookies == $number;
    }
    # Twice as often again, so that there would be another.
    for (1 .. 2 * $number) {
        my $answer = ask($uri, undef, %opt);
        $cookies{ $answer->{server} }{ $answer->{cookie} // 'none' } = 1;
    }
    return { map { $_ => join ' ', sort keys %{ $cookies{$_} } } keys %cookies };
}

# Who serves a client, asked until both workers have been and at least so often.
sub served {
    my ($uri, $value, %opt) = @_;
    my (%servers, %workers);
    for my $number (1 .. 200) {
        my $answer = ask($uri, $value, %opt);
        $servers{ $answer->{server} }++;
        $workers{ $answer->{worker} // 'none' }++;
        last if $number >= 8 && keys %workers >= 2;
    }
    return join ' ', sort keys %servers;
}

my (%cookies, $of);

subtest 'cookies are those of nginx alone' => sub {
    my $alone = $t->another_nginx($t->globals(module => 0) . <<"CONF")->run;

worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream plain { $cookie $servers }
    server { listen 127.0.0.1:%%PORT_2%% reuseport; location / { proxy_pass http://plain; } }
}
CONF
    my $number = 4 + @special;
    # Where it is IPv6 first, a name may have an address where nobody listens.
    $of = cookies('/', $number, port => $t->port(2));
    is_deeply([ sort keys %$of ], [ sort $a, $b, $c, $d, @special ], 'all servers');
    ok($alone->stop, 'nginx without the module ends');
    is_deeply(cookies('/plain/', $number), $of, 'in a plain block');
    my $list = join '', map { "server $_;" } $c, $a, "$b weight=3", $d, @special;
    is(told('POST', "/upstream/$_", $list), '200 success', "$_: a list is posted") for 'posted', 'posted_ring';
    for my $kind (sort keys %kinds) {
        my $got = cookies("/$kind/", $number);
        # What once was slow is not asked for a while.
        my %expected = $kind eq 'time' ? map { $_ => $of->{$_} } keys %$got : %$of;
        is_deeply($got, \%expected, "$kind: $kinds{$kind}" =~ s/ (?:server \S+(?: \w+=\d+)?;|upsync \S+ .*?;)//gr);
    }
};

subtest 'a client stays with its server' => sub {
    for my $kind ('plain', sort keys %kinds) {
        is(served("/$kind/", $of->{$_}), $_, "$kind: $_") for $a, $b, @special;
        my $answer = ask("/$kind/", $of->{$a});
        is($answer->{cookie} // $of->{$a}, $of->{$a}, "$kind: has its cookie, or the same again");
        my %others = map { ask("/$kind/", $_)->{server} => 1 } ('nobody', '', '0' x 32, uc $of->{$a}) x 10;
        cmp_ok(scalar(keys %others), '>', 1, "$kind: a cookie that is nobody's is as none") unless $kind eq 'time';
    }
    ok($t->reload, 'a reload');
    is(served("/$_/", $of->{$b}), $b, "$_: as before") for sort keys %kinds;
    configure(zone => '3m');
    ok($t->reload, 'a zone of another size');
    is(served("/$_/", $of->{$b}), $b, "$_: as before") for sort keys %kinds;
};

# Two ways to change a list: { ADDRESS => PARAMETERS }, in an order.
my %ways = (
    moving => sub {
        my @list = @_;
        my $body = join '', map {
            my ($server, %is) = @$_;
            join(' ', 'server', $server, map { $is{$_} eq 'on' ? $_ : "$_=$is{$_}" } sort keys %is) . ';';
        } @list;
        return !grep { told('POST', "/upstream/$_", $body) ne '200 success' } 'moving', 'learnt';
    },
    consul => sub {
        my @list = @_;
        my %wanted = map { my ($server, %is) = @$_; ("consul/$server" => { map { $_ => $is{$_} eq 'on' ? 1 : $is{$_} } keys %is }) } @list;
        my $keys = $consul->get('/v1/kv/consul/?keys');
        $consul->kv_put_many(\%wanted);
        $consul->kv_delete($_) for grep { !$wanted{$_} } @{ json($keys->{body}) };
        return wait_until {
            my @shown = http_get($traffic, '/list?consul')->{body} =~ /server (\S+ .*);\n/g;
            my @expected = sort map {
                my ($server, %is) = @$_;
                "$server weight=" . ($is{weight} // 1) . ' max_fails=' . ($is{max_fails} // 2) . ' fail_timeout='
                    . ($is{fail_timeout} // 10) . 's' . ($is{drain} ? ' drain' : '') . ($is{down} ? ' down' : '');
            } @list;
            join(', ', sort @shown) eq join(', ', @expected) && http_get($traffic, '/list?learnt_consul')->{body} =~ s/.*?\n//r
                eq http_get($traffic, '/list?consul')->{body} =~ s/.*?\n//r;
        } 10;
    },
);

for my $way (sort keys %ways) {
    my ($uri, $change) = ("/$way/", $ways{$way});
    my $new = sub { my %seen = map { ask($uri)->{server} => 1 } 1 .. 30; return join ' ', sort keys %seen };

    subtest "$way: lists that change" => sub {
        for my $list ([ $c, $b, $a ], [ $d, $a ], [ $a, $b, $c, $d ], [ $a ], [ $b, $a, $d ]) {
            ok($change->(map { [$_] } @$list), "@$list");
            is(served($uri, $of->{$a}), $a, 'a client of a server that stays');
            is($new->(), join(' ', sort @$list), 'new ones come to all');
        }
        ok($change->([ $a, weight => 1 ], [ $b, weight => 100 ]), 'weights');
        is(served($uri, $of->{$a}), $a, 'matter to new ones only');
    };

    subtest "$way: a server that drains" => sub {
        ok($change->([ $a, drain => 'on' ], [$b], [$c]), 'drain');
        is(served($uri, $of->{$a}), $a, 'keeps its clients');
        is($new->(), join(' ', sort $b, $c), 'and gets no new ones');
        is(ask($uri, 'nobody')->{server} =~ s/^(?:\Q$b\E|\Q$c\E)$/others/r, 'others', 'nor those of others');
        my $answer = ask($uri, $of->{$a});
        is($answer->{cookie} // $of->{$a}, $of->{$a}, 'the cookie stays');
        ok($t->reload, 'a reload');
        if ($way eq 'consul') {
            wait_until { http_get($traffic, '/list?consul')->{body} =~ /drain/ } 10, 'still drains';
        }
        is(served($uri, $of->{$a}), $a, 'keeps them');
        is($new->(), join(' ', sort $b, $c), 'and gets none');
        ok($change->([ $a, drain => 'on' ]), 'all drain');
        is(served($uri, $of->{$a}), $a, 'keeps them');
        is($new->(), 502, 'nobody for a new one');
        ok($change->([ $a, drain => 'on' ], [ $b, drain => 'on' ], [$c]), 'two of three');
        is(served($uri, $of->{$_}), $_, 'keep theirs') for $a, $b, $c;
        is($new->(), $c, 'new ones come to the third');
        ok($change->([$a], [$b], [$c]), 'none any more');
        is($new->(), join(' ', sort $a, $b, $c), 'new ones come to all');
    };

    subtest "$way: a server that is down or gone" => sub {
        for my $list ([ [ $a, down => 'on' ], [$b] ], [ [$b] ], [ [ $a, weight => 0 ], [$b] ], [ [ $a, down => 'on', drain => 'on' ], [$b] ]) {
            ok($change->(@$list), 'a list: ' . join ', ', map { "@$_[ 1 .. $#$_ ]" } @$list);
            my $answer = ask($uri, $of->{$a});
            is("$answer->{server} $answer->{cookie}", "$b $of->{$b}", 'its client has another, and its cookie');
            is(served($uri, $answer->{cookie}), $b, 'with whom it stays');
        }
        ok($change->([$a], [$b]), 'it is back');
        is(served($uri, $of->{$a}), $a, 'also for who has the old cookie');
        is(served($uri, $of->{$b}), $b, 'while who has the new one stays');
    };

    subtest "$way: a server that fails" => sub {
        my @timeout = (max_fails => 1, fail_timeout => 600);
        for my $drain ('', 'drain') {
            ok($change->([ $a, $drain ? ($drain => 'on') : (), @timeout ], [ $b, @timeout ]), "it is there $drain");
            is(served($uri, $of->{$a}), $a, 'and serves');
            $backends[0]->stop;
            my $answer = ask($uri, $of->{$a});
            is("$answer->{server} " . ($answer->{cookie} // 'none'), "$b $of->{$b}", 'its client has another, and its cookie');
            is($answer->{tried}, "$a, $b", 'in one request');
            is(served($uri, $of->{$a}), $b, 'also who comes with the old one');
            is(ask($uri, $of->{$a})->{tried}, $b, 'which is out now');
            $backends[0]->run;
            ok($change->([$b]), 'it goes');
        }
        ok($change->([$a], [$b], [$c]), 'it comes');
        is(served($uri, $of->{$a}), $a, 'and serves again');
    };
}

subtest 'a server that is full' => sub {
    my $slow = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 64, ReuseAddr => 1)
        or die "listen: $!\n";
    my $held = '127.0.0.1:' . $slow->sockport;
    # A request that comes to it, with a cookie or none.
    my $asked = sub {
        my $client = http_connect($traffic);
        my $cookie = @_ ? "Cookie: srv_id=$_[0]\r\n" : '';
        $client->send("GET /moving/ HTTP/1.1\r\nHost: a\r\n${cookie}Connection: close\r\n\r\n");
        ok(IO::Select->new($slow)->can_read(10), 'asked') or return;
        my $server = $slow->accept;
        sysread $server, my $head, 4096;
        return sub {
            syswrite $server, "HTTP/1.0 200 OK\r\n\r\nslow";
            close $server;
            return $client->receive('GET', 10);
        };
    };
    ok($ways{moving}->([ $held, max_conns => 1 ]), 'one with a limit, alone');
    my ($its) = ($asked->()->()->{headers}{'set-cookie'} // '') =~ /srv_id=(\w+)/;
    ok($its, 'its cookie');
    ok($ways{moving}->([ $held, max_conns => 1 ], [$b]), 'and another');
    my $request = $asked->($its);
    is(served('/moving/', $its), $b, 'while it is full, its clients have another, over all workers');
    ok(!IO::Select->new($slow)->can_read(0), 'it gets no second connection');
    is($request->()->{body}, 'slow', 'the request ends');
    is($asked->($its)->()->{body}, 'slow', 'then it is asked again');
};

subtest 'the interface' => sub {
    ok($ways{moving}->([$a], [$b]), 'a list');
    is(told('PATCH', "/upstream/moving/server/$a", 'drain'), '200 success', 'PATCH drain');
    is(served('/moving/', $of->{$a}), $a, 'keeps its clients');
    is(ask('/moving/')->{server}, $b, 'and gets no new ones') for 1 .. 5;
    is(told('PATCH', "/upstream/moving/server/$a", 'drain=off down'), '200 success', 'PATCH down');
    is(served('/moving/', $of->{$a}), $b, 'they have another');
    is(told('DELETE', '/upstream/moving'), '200 success', 'DELETE');
    is(ask('/moving/', $of->{$a})->{server}, 502, 'nobody');
    is(told('POST', '/upstream/moving/reset'), '200 success', 'reset');
    is(served('/moving/', $of->{$_}), $_, 'all are back') for $a, $b, $c;
    for my $method ('least_conn', 'ip_hash', 'hash $request_id', 'hash $request_id consistent', 'random two', 'least_time last_byte') {
        is(told('POST', '/upstream/moving', "$method; server $a; server $b; server $c drain;"), '200 success', $method);
        is(served('/moving/', $of->{$_}), $_, 'a client stays with its server') for $a, $b, $c;
    }
    is(told('POST', '/upstream/moving/reset'), '200 success', 'reset');

    # Names made at run time are copies of the template, which has it.
    my %opt = (headers => { 'X-Name' => 'made' });
    is(told('POST', '/upstream/made', "server $b; server $a; server $c;"), '200 success', 'a name made at run time');
    for my $uri ('/made/', '/template/') {
        is_deeply(cookies($uri, 3, %opt), { map { $_ => $of->{$_} } $a, $b, $c }, "$uri: has the cookies");
        is(served($uri, $of->{$_}, %opt), $_, "$uri: a client stays with its server") for $a, $b, $c;
    }
    is(told('PATCH', "/upstream/made/server/$a", 'drain'), '200 success', 'one drains');
    is(served($_, $of->{$a}, %opt), $a, "$_: and keeps its clients") for '/made/', '/template/';
    is(told('DELETE', '/upstream/made'), '200 success', 'deleted');
    is(served('/template/', $of->{$a}, %opt), $d, 'the server of the template');
};

subtest 'sticky learn' => sub {
    for my $way (sort keys %ways) {
        my ($uri, $change) = ($way eq 'moving' ? '/learnt/' : '/learnt_consul/', $ways{$way});
        ok($change->([$a], [$b], [$c]), "$way: three servers");
        my %of = map { $_ => ask("$uri?new=$way$_")->{server} } 1 .. 9;
        is_deeply([ sort keys %{ { reverse %of } } ], [ sort $a, $b, $c ], 'sessions of each');
        my @key = (key => 'session');
        is(served($uri, "$way$_", @key), $of{$_}, "session $_ stays") for 1 .. 9;
        is(scalar(keys %{ { map { ask($uri, "$way-$_", @key)->{server} => 1 } 1 .. 30 } }), 3, 'one that nobody made does not');
        ok($change->([$d], [ $a, drain => 'on' ], [$c]), 'one drains, one goes, one comes');
        for my $session (1 .. 9) {
            my $who = served($uri, "$way$session", @key);
            $of{$session} eq $b ? isnt($who, $b, 'the one that is gone serves nobody') : is($who, $of{$session}, "session $session stays");
        }
        my %new = map { ask($uri)->{server} => 1 } 1 .. 20;
        is(join(' ', sort keys %new), join(' ', sort $c, $d), 'new ones come to the others');
    }
};

# What `route` says is the cookie, and what `sticky route` looks for.
subtest 'route' => sub {
    my $conf = sub {
        my ($globals, $port, $ours) = @_;
        return "$globals\nworker_processes 2;\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n"
            . "upstream a { $ours $cookie server $a route=one; server $b route=two; server $c; }\n"
            . "upstream b { $ours sticky route \$cookie_route \$arg_route; server $a route=one; server $b route=two; server $c; }\n"
            . "server { listen 127.0.0.1:%%PORT_$port%% reuseport; location /a/ { proxy_pass http://a; } location /b/ { proxy_pass http://b; } } }\n";
    };
    my ($status, $output) = $t->nginx_t($conf->('%%TEST_GLOBALS%%', 4, 'upsync_lb roundrobin;'));
    if ($status) {
        like($output, qr/\[emerg\] .*"?route/, 'not taken, which is said');
        return;
    }
    my $alone = $t->another_nginx($conf->($t->globals(module => 0), 3, ''))->run;
    my $ours = $t->another_nginx($conf->('%%TEST_GLOBALS%%', 4, 'upsync_lb roundrobin;'))->run;
    my ($theirs, $port) = map { $t->port($_) } 3, 4;
    is_deeply(cookies('/a/', 3, port => $port), cookies('/a/', 3, port => $theirs), 'cookies are those of nginx alone');
    for my $route ('one', 'two') {
        my ($expected, $got) = map { join ' ', sort keys %{ { map { $_ => 1 } @$_ } } }
            map { my $port = $_; [ map { ask("/b/?route=$route", undef, port => $port)->{server} } 1 .. 8 ] } $theirs, $port;
        is($got, $expected, "sticky route $route");
    }
    ok($_->stop, 'ends') for $alone, $ours;
};

$t->done;
