#!/usr/bin/perl

# Which balancing method a block has, and who balances it: nginx's directives and `upsync_lb` in
# whatever order, with and without `keepalive` and `upsync`; and blocks with `upsync_lb` alone, whose
# servers are those of nginx.conf.

use strict;
use warnings;

use Fcntl qw(:flock);
use FindBin;
use IO::Select;
use IO::Socket::INET;
use List::Util qw(max min sum);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my @backends = map { $t->backends(1, location => 'add_header X-Connection $connection;') } 0 .. 3;
my ($a, $b, $c, $d) = map { $_->addresses } @backends;
my $dead = '127.0.0.1:' . $t->free_port;
my ($minor, $patch) = `${\ Test::Upsync::nginx_binary() } -v 2>&1` =~ m{/1\.(\d+)\.(\d+)};
my $has_least_time = $minor >= 31;

# A server in the test's own hands.
my $slow = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $t->free_port, Listen => 64, ReuseAddr => 1)
    or die "listen: $!\n";
my $held = '127.0.0.1:' . $slow->sockport;

# nginx's directive, and the values of `upsync_lb` that mean the same.
my @methods = (
    [ '' => qw(roundrobin random ip_hash least_conn least_time local), 'local 127.0.0.0/8 ::1' ],
    [ 'least_conn;' => 'least_conn' ],
    [ 'ip_hash;' => 'ip_hash' ],
    [ 'hash $arg_k;' => 'hash_modula' ],
    [ 'hash $arg_k consistent;' => 'hash_ketama' ],
    [ 'random;' => 'random' ],
    [ 'random two;' => 'random' ],
    [ 'random two least_conn;' => 'random' ],
    [ 'random two least_time=header;' => 'random' ],
    [ 'least_time header;' => 'least_time' ],
    [ 'least_time last_byte;' => 'least_time' ],
);

# What nginx without our module knows of a text.
sub stock { return $_[0] =~ /least_time/ && !$has_least_time ? '' : $_[0] }

sub permutations {
    my @all = @_ or return [];
    return map {
        my $place = $_;
        map { [ $all[$place], @$_ ] } permutations(@all[ grep { $_ != $place } 0 .. $#all ]);
    } 0 .. $#all;
}

# All the blocks: { text, stock, lb, name }, each in one line. `OURS` stands where our directive does.
my $upsync = sub { "upsync %%CONSUL%%/v1/kv/$_[0]/ upsync_type=consul upsync_interval=20ms;" };
my @arrangements;
for my $method (@methods) {
    my ($directive, @values) = @$method;
    for my $parts (map { permutations(grep { $_ ne '' } $directive, 'OURS', @$_) } [], ['keepalive 4;']) {
        push @arrangements, { directive => $directive, values => \@values, text => join(' ', @$parts),
            stock => join(' ', map { $_ eq 'OURS' ? () : stock($_) || () } @$parts) };
    }
}

# Lines of complaint of a configuration: [line, text].
sub complaints {
    my $conf = shift;
    my ($status, $output) = $t->nginx_t($conf);
    my @lines = map { /^nginx: \[\w+\] (.*?) in \S+:(\d+)$/ ? [ $2, $1 ] : [ 0, $_ ] }
        grep { /\[(?:emerg|alert|crit|error|warn)\]/ } split /\n/, $output;
    return ($status, \@lines);
}

subtest 'nothing is said where nginx alone says nothing' => sub {
    my (@ours, @stock);
    for my $arrangement (@arrangements) {
        for my $value ('upsync', @{ $arrangement->{values} }) {
            my $name = 'u' . @ours;
            my $directive = $value eq 'upsync' ? $upsync->($name) : "upsync_lb $value;";
            my $servers = "server $a; server $b weight=2;";
            # Servers may stand anywhere, too.
            my $place = @ours % 3;
            for ([ \@ours, $arrangement->{text} =~ s/OURS/$directive/r ], [ \@stock, $arrangement->{stock} ]) {
                my ($blocks, $text) = @$_;
                my @parts = split /(?<=;) /, $text;
                my $whole = $place == 0 ? "$servers $text" : $place == 1 ? "$text $servers"
                    : join ' ', shift(@parts) // (), $servers, @parts;
                push @$blocks, "upstream $name { $whole }";
            }
        }
    }
    my $conf = sub {
        my ($module, @blocks) = @_;
        my $load = $module ? 'load_module ' . Test::Upsync::module() . ';' : '#';
        my $globals = $t->globals(module => 0);
        return join "\n", $load, $globals, 'events {}', 'http {', 'upsync_zone 16m;' x $module, '%%TEST_GLOBALS_HTTP%%', @blocks, '}', '';
    };
    my ($status, $ours) = complaints($conf->(1, @ours));
    my ($without, $stock) = complaints($conf->(0, @stock));
    is("$status $without", '0 0', scalar(@ours) . ' blocks are good') || diag explain $ours, $stock;
    is_deeply($ours, $stock, scalar(@$stock) . ' complaints, the same');
    is_deeply([ grep { $_->[1] ne 'load balancing method redefined' } @$ours ], [], 'about one thing');
};

# Who a request came to, and by which connection and worker.
sub ask {
    my ($port, $uri, %opt) = @_;
    my $client = join '.', 10, map { int rand 256 } 1 .. 3;
    return http_get($port, $uri, timeout => 20, headers => { 'X-Client' => $client }, %opt);
}

sub server_of { my $answer = shift; return $answer->{body} =~ /^hello world by (\S+)\n$/ ? $1 : $answer->{error} // $answer->{status} }

sub counts { my %counts; $counts{$_}++ for @_; return \%counts }

sub who { my ($port, $uri, $number) = @_; return map { server_of(ask($port, $uri)) } 1 .. $number }

# Asks until each worker has answered, and at least so often.
sub ask_all_workers {
    my ($nginx, $port, $uri, $least) = @_;
    my %seen = map { $_ => 0 } $nginx->workers;
    my @answers;
    while (@answers < 500 && (@answers < $least || grep { !$_ } values %seen)) {
        push @answers, ask($port, "$uri?k=" . @answers);
        $seen{ $answers[-1]{headers}{'x-worker'} // '' }++;
    }
    return @answers;
}

# Asks until a request has come to the server in our hands, and nobody has answered it.
sub hold {
    my ($port, $uri) = @_;
    for my $number (1 .. 500) {
        my $client = http_connect($port);
        my $from = join '.', 10, map { int rand 256 } 1 .. 3;
        $client->send("GET $uri?k=$number HTTP/1.1\r\nHost: a\r\nX-Client: $from\r\nConnection: close\r\n\r\n");
        my @ready = IO::Select->new($slow, $client->{socket})->can_read(20);
        if (grep { $_ == $slow } @ready) {
            my $server = $slow->accept;
            sysread $server, my $head, 4096;
            return { client => $client, server => $server };
        }
        $client->receive('GET', 20);
    }
    return;
}

sub release {
    my ($request) = @_;
    syswrite $request->{server}, "HTTP/1.0 200 OK\r\n\r\nslow";
    close $request->{server};
    return $request->{client}->receive('GET', 20)->{body};
}

# Connections to servers for requests of one client.
sub connections {
    my ($port, $uri, $number) = @_;
    my $client = http_connect($port);
    my @answers = map { ask(0, "$uri?k=$_", connection => $client) } 1 .. $number;
    $client->close;
    return scalar keys %{ counts(map { $_->{headers}{'x-connection'} // "$_->{status}" } @answers) };
}

my $http = <<'CONF';
    %%TEST_GLOBALS_HTTP%%
    add_header X-Worker $pid always;
    add_header X-Tried "$upstream_addr" always;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    # ip_hash is to have more than one client.
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Client;
CONF

subtest 'ours balances, below keepalive where nginx keeps it' => sub {
    my (@blocks, %stock);
    for my $arrangement (@arrangements) {
        my ($value) = @{ $arrangement->{values} };
        my @ours = ("upsync_lb $value;");
        push @ours, 'upsync' if $arrangement->{text} =~ /^OURS.+keep|^[^k]+OURS$|^OURS$/;
        push @ours, '' if $arrangement->{directive} ne '' && stock($arrangement->{directive}) eq '';
        push @ours, map { "upsync_lb $_;" } @{ $arrangement->{values} }[ 1 .. $#{ $arrangement->{values} } ] if $arrangement->{directive} eq '';
        for my $ours (@ours) {
            my $name = 'u' . @blocks;
            my $is_followed = $ours eq 'upsync';
            my $directive = $is_followed ? $upsync->($name) : $ours;
            my $servers = $is_followed ? '' : "server $held max_conns=1; server $a;";
            $consul->kv_put_many({ "$name/$held" => { max_conns => 1 }, "$name/$a" => {} }) if $is_followed;
            $stock{ $arrangement->{stock} } //= 's' . keys %stock;
            my $text = $arrangement->{text} =~ s/OURS ?/$directive /r;
            push @blocks, { name => $name, text => $text, servers => $servers, stock => $arrangement->{stock} };
        }
    }
    my $conf = sub {
        my ($globals, $port, @pairs) = @_;
        my $upstreams = join "\n", map { "upstream $_->[0] { $_->[1] }" } @pairs;
        my $locations = join "\n", map { "location /$_->[0]/ { proxy_pass http://$_->[0]; }" } @pairs;
        return "$globals\nworker_processes 2;\nevents {}\nhttp {\n$http\n$upstreams\n"
            . "server { listen 127.0.0.1:%%PORT_$port%% reuseport; location /list { return 404; }\n$locations\n} }\n";
    };
    my $stock = $t->another_nginx($conf->($t->globals(module => 0), 2, map { [ $stock{$_}, "$_ server $a;" ] } sort keys %stock))->run;
    my %keeps = map { $_ => connections($t->port(2), "/$stock{$_}/", 6) } sort keys %stock;
    ok($stock->stop, 'nginx without the module ends');
    is_deeply(\%keeps, { map { $_ => /keepalive 4;$/ ? 1 : 6 } keys %keeps }, 'keepalive has to be last') if $minor < 29;

    my $text = $conf->('%%TEST_GLOBALS%%', 3, map { [ $_->{name}, "$_->{text} $_->{servers}" ] } @blocks);
    $text =~ s/location \/list \{ return 404; \}/location = \/list { upstream_show; }/;
    my $nginx = $t->another_nginx($text)->run;
    my $port = $t->port(3);
    wait_until { $nginx->workers == 2 } 10, 'two workers';
    for my $block (@blocks) {
        my ($name, $uri) = ($block->{name}, "/$block->{name}/");
        my $label = $block->{text} =~ s/upsync 127\S+ .*?;/upsync;/r;
        wait_until { http_get($port, "/list?$name")->{body} =~ /\Q$held\E .* max_conns=1;\n.*\Q$a\E|\Q$a\E .*\n.*\Q$held\E .* max_conns=1/ } 10
            or diag "$label: " . http_get($port, "/list?$name")->{body};
        my $request = hold($port, $uri);
        ok($request, "$label: one request is held") or next;
        my @answers = ask_all_workers($nginx, $port, $uri, 20);
        is_deeply([ keys %{ counts(map { server_of($_) } @answers) } ], [$a], "$label: no worker sends another there")
            || diag explain counts(map { server_of($_) } @answers);
        is_deeply([ sort keys %{ counts(map { $_->{headers}{'x-worker'} } @answers) } ], [ sort $nginx->workers ], 'both were asked');
        is(connections($port, $uri, 6), $keeps{ $block->{stock} }, "$label: connections are kept as nginx keeps them");
        is(release($request), 'slow', 'the request ends');
    }
    ok(!IO::Select->new($slow)->can_read(0), 'no other came to the server');
    ok($nginx->stop, 'it ends');
};

subtest 'each method does as it is called' => sub {
    my %blocks = (
        roundrobin => 'upsync_lb roundrobin;', ip_hash => 'upsync_lb ip_hash;', least_conn => 'upsync_lb least_conn;',
        hash_modula => 'upsync_lb hash_modula; hash $arg_k;', hash_ketama => 'hash $arg_k consistent; upsync_lb hash_ketama;',
        random => 'upsync_lb random;', random_two => 'upsync_lb random; random two;', least_time => 'upsync_lb least_time;',
        header => 'least_time header;', last_byte => 'least_time last_byte;', two_times => 'random two least_time=last_byte;',
        local => 'upsync_lb local 127.0.0.0/8;',
    );
    # By which nginx alone leads each client and key to the same server.
    my %stock = (ip_hash => 'ip_hash;', hash_modula => 'hash $arg_k;', hash_ketama => 'hash $arg_k consistent;');
    my $conf = sub {
        my ($globals, $port, $servers, %texts) = @_;
        my $upstreams = join "\n", map { "upstream $_ { $texts{$_} $servers }" } sort keys %texts;
        my $locations = join "\n", map { "location /$_/ { proxy_pass http://$_; }" } sort keys %texts;
        return "$globals\nworker_processes 2;\nevents {}\nhttp {\n$http\n$upstreams\n"
            . "server { listen 127.0.0.1:%%PORT_$port%% reuseport;\n$locations\n} }\n";
    };
    my $weighted = "server $a weight=3; server $b; server $c weight=2; server $d down;";
    my $alone = $t->another_nginx($conf->($t->globals(module => 0), 2, $weighted, %stock))->run;
    my $nginx = $t->another_nginx($conf->('%%TEST_GLOBALS%%', 3, $weighted, %blocks))->run;
    my $port = $t->port(3);
    wait_until { $nginx->workers == 2 && $alone->workers == 2 } 10, 'both run';
    for my $method (sort keys %stock) {
        my %seen;
        my @differences = grep {
            my %opt = (headers => { 'X-Client' => join '.', 10, map { int rand 256 } 1 .. 3 });
            my ($ours, $theirs) = map { server_of(http_get($_, "/$method/?k=" . int rand 1e9, %opt)) } $port, $port;
            my $uri = "/$method/?k=$_";
            ($ours, $theirs) = map { server_of(http_get($_, $uri, %opt)) } $port, $t->port(2);
            $seen{$ours}++;
            $ours ne $theirs;
        } 1 .. 100;
        is("@differences", '', "$method: as nginx alone, for 100 clients and keys");
        is_deeply([ sort keys %seen ], [ sort $a, $b, $c ], 'over all servers');
    }
    ok($alone->stop, 'nginx without the module ends');
    for my $method (qw(roundrobin local)) {
        my @answers = ask_all_workers($nginx, $port, "/$method/", 60);
        my @who = map { server_of($_) } @answers[ 0 .. 59 ];
        is_deeply(counts(@who), { $a => 30, $b => 10, $c => 20 }, "$method: turns by weight over all workers");
        is_deeply([ @who[ 0 .. 53 ] ], [ @who[ 6 .. 59 ] ], 'always in the same order');
    }
    for my $method (qw(random random_two)) {
        my %seen;
        wait_until { $seen{ server_of(ask($port, "/$method/")) }++; keys %seen == 3 } 10, "$method: all servers";
        is($seen{$d}, undef, 'but the one that is down');
    }
    ok($nginx->stop, 'it ends');

    # A request that lasts, and others of one worker, so that each is over when the next one comes.
    my $busy = $t->another_nginx($conf->('%%TEST_GLOBALS%%', 3, "server $held; server $a;", %blocks))->run;
    wait_until { $busy->workers == 2 } 10, 'it runs';
    for my $method (qw(least_conn random_two)) {
        my $request = hold($port, "/$method/") or fail("$method: held"), next;
        my $client = http_connect($port);
        is_deeply(counts(map { server_of(ask(0, "/$method/", connection => $client)) } 1 .. 10), { $a => 10 },
            "$method: who has less to do");
        is(release($request), 'slow', 'the request ends');
    }
    for my $method (qw(least_time header last_byte two_times)) {
        my $request = hold($port, "/$method/") or fail("$method: held"), next;
        select undef, undef, undef, 1;
        is(release($request), 'slow', "$method: an answer after a second");
        my $client = http_connect($port);
        is_deeply(counts(map { server_of(ask(0, "/$method/", connection => $client)) } 1 .. 10), { $a => 10 },
            'who is faster');
    }
    ok($busy->stop, 'it ends');
};

# The main nginx of this test: blocks that have their servers from nginx.conf.
my %conf = (lines => "server $a; server $b;", zone => '1m', more => '', rr => 'upsync_lb roundrobin;');
my ($traffic, $interface) = map { $t->port($_) } 0, 1;

sub configure {
    %conf = (%conf, @_);
    $t->write_file_expand('nginx.conf', <<"CONF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    $http
    upsync_zone $conf{zone};
    upstream rr { $conf{rr} $conf{lines} }
    upstream other { server $d; }
    upstream out { upsync_lb roundrobin; server $dead max_fails=1 fail_timeout=600s; $conf{lines} }
    upstream one { upsync_lb roundrobin; server $held max_conns=1 weight=1000; $conf{lines} }
    upstream lost { keepalive 4; least_conn; server $a; }
    upstream kept { least_conn; keepalive 4; server $a; }
    $conf{more}
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        location = /list { upstream_show; }
        location / { proxy_pass http://rr; }
        location /out { proxy_pass http://out; }
        location /one { proxy_pass http://one; }
        location /name { proxy_pass http://\$http_x_name; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
CONF
}

sub told {
    my ($method, $path, $body) = @_;
    my $answer = http($method, $interface, $path, body => $body, timeout => 20);
    return "$answer->{status} $answer->{body}";
}

sub view { return json(http_get($interface, "/upstream/$_[0]?format=json")->{body}) }

sub listed { return join ' ', http_get($traffic, "/list?$_[0]")->{body} =~ /server (\S+) weight/g }

# Strictly by turns, over both workers.
sub turns {
    my ($name, @servers) = @_;
    my @answers = ask_all_workers($t, $traffic, '/', 10 * @servers);
    my @who = map { server_of($_) } @answers;
    my @first = @who[ 0 .. $#servers ];
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is_deeply([ sort @first ], [ sort @servers ], "$name: each of them");
    is_deeply(\@who, [ map { $first[ $_ % @first ] } 0 .. $#who ], "$name: by turns, over both workers") || diag "@who";
    return;
}

sub refusals { my $line = qr{connect\(\) failed \(111: .*upstream: "http://\Q$dead\E}; return scalar grep { $_ =~ $line } split /\n/, $t->log }

configure();
$t->run;
wait_until { $t->workers == 2 } 10, 'two workers';

subtest 'a block without "upsync"' => sub {
    turns('two servers', $a, $b);
    my $view = view('rr');
    is_deeply([ @$view{qw(name source)}, map { $_->{server} } @{ $view->{servers} } ], [ 'rr', 'config', $a, $b ], 'shown as nginx.conf has it');
    cmp_ok(sum(map { $_->{requests} } @{ $view->{servers} }), '>=', 20, 'with its requests');
    is(http_get($traffic, '/list?rr')->{body},
        join('', "Upstream name: rr; Backend server count: 2\n", map { "        server $_ weight=1 max_fails=1 fail_timeout=10s;\n" } $a, $b),
        'upstream_show has it') || diag http_get($traffic, '/list?rr')->{body};
    like(http_get($traffic, '/list')->{body}, qr/name: rr;/, 'also in the list of all');
    is(told('GET', '/upstream/rr'), "200 server $a\nserver $b\n", 'GET');
    is(told('GET', '/list'), "200 rr\nother\nout\none\nlost\nkept\n", 'once in the list');
    my $name = { 'X-Name' => 'rr' };
    is_deeply(counts(map { server_of(http_get($traffic, '/name', headers => $name)) } 1 .. 10), { $a => 5, $b => 5 }, 'found by a variable');
    is_deeply([ map { view($_)->{keepalive} } qw(kept lost) ], [ 4, $minor < 29 || $minor == 29 && $patch < 7 ? undef : 4 ],
        'a method behind "keepalive" takes its place, and JSON says so');
};

subtest 'a reload with other "server" lines' => sub {
    # Found by the first three at the latest.
    is(scalar(grep { $_ ne $a && $_ ne $b } who($traffic, '/out', 3)), 0, 'a dead server costs no request');
    is(refusals(), 1, 'and is asked once');
    is_deeply(counts(who($traffic, '/out', 20)), { $a => 10, $b => 10 }, 'the others have its turns');
    my $request = hold($traffic, '/one') or return fail('one held');
    is(scalar(grep { $_ ne $a && $_ ne $b } who($traffic, '/one', 20)), 0, 'no second to a server that is full');
    my ($before) = grep { $_->{server} eq $b } @{ view('rr')->{servers} };

    my $load = wrk("http://127.0.0.1:$traffic/", connections => 8, seconds => 600, background => 1, pid => \my $wrk);
    my @lists = ([ $b, $c ], [ $c, $d, $a ], [ $b, $c ]);
    for my $list (@lists) {
        configure(lines => join ' ', map { "server $_;" } @$list);
        ok($t->reload, "a reload: @$list");
        is(listed('rr'), "@$list", 'is in force');
        my %seen = %{ counts(who($traffic, '/', 40)) };
        is_deeply([ sort keys %seen ], [ sort @$list ], 'and serves');
        is(view('rr')->{source}, 'config', 'as that of nginx.conf');
    }
    kill 'INT', $wrk;
    my $result = $load->();
    is($result->{non_2xx}, 0, "no request failed of $result->{requests}");
    turns('afterwards', $b, $c);
    my ($after) = grep { $_->{server} eq $b } @{ view('rr')->{servers} };
    cmp_ok($after->{requests}, '>', $before->{requests}, 'what a server has done is still known');
    is_deeply(counts(who($traffic, '/out', 20)), { $b => 10, $c => 10 }, 'the dead one is still out');
    is(refusals(), 1, 'and not asked again');
    is(scalar(grep { $_ ne $b && $_ ne $c } who($traffic, '/one', 20)), 0, 'the full one is still full');
    is(release($request), 'slow', 'its request ends');
    my $next = hold($traffic, '/one');
    ok($next, 'and there is room for another');
    is(release($next), 'slow', 'which ends') if $next;

    configure(lines => "server $a weight=4; server $b down; server $c; server $d backup;");
    ok($t->reload, 'parameters');
    is_deeply(counts(who($traffic, '/', 50)), { $a => 40, $c => 10 }, 'are honoured');
    configure(lines => 'server localhost:' . ($backends[0]->ports)[0] . "; server $b;");
    ok($t->reload, 'a host name');
    is_deeply([ sort keys %{ counts(who($traffic, '/', 20)) } ], [ sort $a, $b ], 'is its addresses');

    configure(lines => "server $c;", more => 'upstream bad { upsync_lb fastest; }');
    ok($t->reload(fails => 1), 'a configuration that is refused');
    is_deeply([ sort keys %{ counts(who($traffic, '/', 20)) } ], [ sort $a, $b ], 'changes nothing');
    configure(lines => "server $a; server $b;", more => '', rr => 'least_conn; upsync_lb least_conn;');
    ok($t->reload, 'another method');
    my $client = http_connect($traffic);
    is_deeply([ sort keys %{ counts(map { server_of(ask(0, '/', connection => $client)) } 1 .. 10) } ], [ sort $a, $b ], 'serves');
    configure(rr => 'hash constant; upsync_lb hash_modula;');
    ok($t->reload, 'and another');
    is(scalar(keys %{ counts(who($traffic, '/', 20)) }), 1, 'is the one in force');
    configure(rr => '');
    ok($t->reload, 'none at all');
    is(scalar(grep { $_ ne $a && $_ ne $b } who($traffic, '/', 20)), 0, 'nginx balances');
    configure(rr => 'upsync_lb roundrobin;', lines => "server $b; server $c;");
    ok($t->reload, 'ours again, with other lines');
    turns('at once', $b, $c);
};

subtest 'a reload with a zone of another size' => sub {
    my $load = wrk("http://127.0.0.1:$traffic/", connections => 8, seconds => 600, background => 1, pid => \my $wrk);
    for (['2m', $b, $c], ['3m', $a, $c], ['1m', $a, $c]) {
        my ($zone, @list) = @$_;
        configure(zone => $zone, lines => join ' ', map { "server $_;" } @list);
        ok($t->reload, "$zone: a reload");
        is(listed('rr'), "@list", 'the list of nginx.conf');
        is_deeply([ sort keys %{ counts(who($traffic, '/', 20)) } ], [ sort @list ], 'serves');
    }
    kill 'INT', $wrk;
    my $result = $load->();
    is($result->{non_2xx}, 0, "no request failed of $result->{requests}");
    turns('afterwards', $a, $c);
};

subtest 'a list posted for it' => sub {
    is(told('POST', '/upstream/rr', "server $d; server $b;"), '200 success', 'posted');
    turns('posted', $b, $d);
    is(view('rr')->{source}, 'api', 'shown');
    is(listed('rr'), "$d $b", 'by upstream_show, too');
    configure(lines => "server $a;");
    ok($t->reload, 'a reload with other lines');
    turns('posted wins', $b, $d);
    configure(zone => '2m', lines => "server $a; server $c;");
    ok($t->reload, 'a zone of another size');
    turns('posted wins', $b, $d);
    is(told('POST', '/upstream/rr/reset'), '200 success', 'reset');
    turns('the lines that nginx.conf has now', $a, $c);
    is(view('rr')->{source}, 'config', 'shown');
    is(told('PATCH', "/upstream/rr/server/$a", 'down'), '200 success', 'a server of nginx.conf is changed');
    is_deeply([ who($traffic, '/', 5) ], [ ($c) x 5 ], 'in the list that is posted by that');
    is(view('rr')->{source}, 'api', 'shown');
    is(told('DELETE', '/upstream/rr'), '200 success', 'deleted');
    is_deeply([ who($traffic, '/', 5) ], [ (502) x 5 ], 'nobody serves');
    unlike(told('GET', '/list'), qr/^rr$/m, 'not listed');
    ok($t->reload, 'also after a reload');
    is_deeply([ who($traffic, '/', 5) ], [ (502) x 5 ], 'nobody');
    is(told('POST', '/upstream/rr/reset'), '200 success', 'reset');
    turns('as in nginx.conf', $a, $c);
    is(told('POST', '/upstream/rr', "hash constant; server $a; server $b;"), '200 success', 'one with a method');
    is(scalar(keys %{ counts(who($traffic, '/', 20)) }), 1, 'has it');
    is(told('POST', '/upstream/rr/reset'), '200 success', 'reset');
    turns('that of the block again', $a, $c);
};

subtest 'a block that gets a source, and loses it' => sub {
    $consul->kv_put("rr/$d", {});
    configure(rr => 'upsync_lb roundrobin; ' . $upsync->('rr'), lines => "server $a; server $b;");
    ok($t->reload, 'a reload with "upsync"');
    wait_until { listed('rr') eq $d } 10, 'it follows';
    is_deeply([ who($traffic, '/', 5) ], [ ($d) x 5 ], 'and serves');
    configure(rr => 'upsync_lb roundrobin;');
    ok($t->reload, 'without');
    turns('the lines of nginx.conf', $a, $b);
};

subtest 'slow_start and drain in "server" lines' => sub {
    configure(lines => "server $a; server $b drain; server $c slow_start=300s weight=2;");
    ok($t->reload, 'a reload');
    is_deeply([ map { [ @$_{qw(server slow_start)}, $_->{drain} ? 'drain' : () ] } @{ view('rr')->{servers} } ],
        [ [ $a, 0 ], [ $b, 0, 'drain' ], [ $c, 300 ] ], 'shown');
    my $rest = 'max_fails=1 fail_timeout=10s';
    like(http_get($traffic, '/list?rr')->{body},
        qr/ \Q$b weight=1 $rest\E drain;\n {8}server \Q$c weight=2 $rest\E slow_start=300s;\n/, 'by upstream_show, too');
    my $start = time;
    my $counts = counts(who($traffic, '/', 200));
    my $took = time - $start;
    is($counts->{$b}, undef, 'one that drains gets nobody');
    SKIP: {
        skip "this machine took $took s", 1 if $took > 30;
        # 200 requests of 3 to 2 by weight; a tenth of its time at most has passed.
        cmp_ok($counts->{$c} // 0, '<=', 30, 'one that has just come gets little: ' . ($counts->{$c} // 0));
    }
    configure(lines => "server $a; server $b drain; server $c weight=2;");
    ok($t->reload, 'without slow_start');
    is_deeply(counts(who($traffic, '/', 60)), { $a => 20, $c => 40 }, 'its share is whole');
    configure(lines => "server $a drain; server $b drain backup;");
    ok($t->reload, 'all drain');
    is_deeply([ who($traffic, '/', 5) ], [ (502) x 5 ], 'nobody serves');
    configure(lines => "server $a; server $b;");
    ok($t->reload, 'none');
    turns('back', $a, $b);
    is(view('out')->{servers}[0]{slow_start}, 0, 'others are as they were');
};

subtest 'the dump of a list with slow_start and drain is included' => sub {
    my $file = $t->testdir . '/dump.conf';
    my $text = "server $a weight=1 max_fails=2 fail_timeout=10s slow_start=30s;\n"
        . "server $b weight=3 max_fails=2 fail_timeout=10s slow_start=500ms backup drain;\n"
        . "server $c weight=1 max_fails=2 fail_timeout=10s drain down;\n";
    $t->write_file('dump.conf', $text);
    my $block = 'upstream dumped { ' . $upsync->('dumped') . " upsync_dump_path $file; include $file; }";
    configure(more => $block);
    my $mark = $t->log_mark;
    ok($t->reload, 'a reload while Consul has no servers');
    my $shown = sub { join '', http_get($traffic, '/list?dumped')->{body} =~ /^ {8}(server .*\n)/mg };
    is($shown->(), $text, 'the list is that of the file');
    unlike($t->log($mark), qr/skipped/, 'all of it');
    $consul->kv_put_many({ "dumped/$a" => { slow_start => '1m', drain => 1 }, "dumped/$b" => { slow_start => '500ms' } });
    my $new = "server $a weight=1 max_fails=2 fail_timeout=10s slow_start=60s drain;\n"
        . "server $b weight=1 max_fails=2 fail_timeout=10s slow_start=500ms;\n";
    wait_until { $shown->() eq $new } 10, 'Consul gives such a list' or diag $shown->();
    wait_until { $t->read_file('dump.conf') eq $new } 10, 'which is written' or diag $t->read_file('dump.conf');
    my ($status, $output) = $t->nginx_t($t->read_file('nginx.conf'));
    is($status, 0, 'nginx reads it') || diag $output;
    ok($t->reload, 'a reload');
    is($shown->(), $new, 'the same list');
    configure(more => '');
    ok($t->reload, 'without it');
};

ok($t->stop, 'nginx ends');

subtest 'upsync_lb local' => sub {
    my $port = $t->free_port;
    my ($near, $near2, $far, $last) = map { "127.$_:$port" } '1.0.1', '1.0.2', '2.0.1', '3.0.1';
    my %servers = map { $_ => $t->backends(0, listen => [$_]) } $near, $near2, $far, $last;
    my $timeout = 'max_fails=1 fail_timeout=600s';
    my $nowhere = '240.0.0.1:9';
    my $nginx = $t->another_nginx(<<"CONF")->run;
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    $http
    proxy_connect_timeout 2s;
    upstream named {
        upsync_lb local 127.1.0.0/16 10.0.0.0/8 ::1;
        server $far $timeout; server $near weight=2 $timeout; server $last backup; server $near2 $timeout;
    }
    upstream single { server $far; server $near2 down; server $near; upsync_lb local 127.1.0.1 fd00::/8; }
    # 240.0.0.0/4 is nobody's network.
    upstream machine { upsync_lb local; server $nowhere $timeout; server $near; server $far; server $last backup; }
    upstream none { server $near; upsync_lb local 10.0.0.0/8; server $far; keepalive 4; }
    upstream posted { upsync_lb local 127.1.0.0/16; server $far; }
    server {
        listen 127.0.0.1:%%PORT_4%% reuseport;
        location = /list { upstream_show; }
        location /posted { proxy_pass http://posted; }
        location /named { proxy_pass http://named; }
        location /single { proxy_pass http://single; }
        location /machine { proxy_pass http://machine; }
        location /none { proxy_pass http://none; }
    }
    server { listen 127.0.0.1:%%PORT_5%% reuseport; location / { dyups_interface; } }
}
CONF
    my $traffic = $t->port(4);
    wait_until { $nginx->workers == 2 } 10, 'two workers';
    is_deeply(counts(who($traffic, '/named', 30)), { $near => 20, $near2 => 10 }, 'those of the networks, by weight');
    is_deeply(counts(who($traffic, '/single', 30)), { $near => 30 }, 'an address is a network');
    is_deeply(counts(who($traffic, '/machine', 30)), { $near => 15, $far => 15 }, 'networks of this machine');
    is_deeply(counts(who($traffic, '/none', 30)), { $near => 15, $far => 15 }, 'where there is none, all others');
    my $post = sub { http('POST', $t->port(5), '/upstream/posted', body => $_[0])->{body} };
    is($post->("server $far; server $near; server $near2 drain;"), 'success', 'a posted list');
    is_deeply(counts(who($traffic, '/posted', 10)), { $near => 10 }, 'has the method of the block');
    is($post->("server $far; server $near weight=0; server $near2 down;"), 'success', 'another');
    is_deeply(counts(who($traffic, '/posted', 10)), { $far => 10 }, 'local ones that cannot serve are as good as none');

    $servers{$near}->stop;
    is_deeply(counts(who($traffic, '/named', 30)), { $near2 => 30 }, 'one is out: the other of the networks');
    $servers{$near2}->stop;
    is_deeply(counts(who($traffic, '/named', 30)), { $far => 30 }, 'both are: the rest');
    $servers{$far}->stop;
    is_deeply(counts(who($traffic, '/named', 30)), { $last => 30 }, 'that is out: backup');
    $servers{$far}->run;
    is(server_of(ask($traffic, '/single')), $far, 'one request that finds the local one out goes on');
    ok($nginx->stop, 'it ends');
};

# nginx-upstream-fair as Debian has it for this nginx; undef if it cannot be had. Kept for the next time.
sub fair {
    my ($version) = `${\ Test::Upsync::nginx_binary() } -v 2>&1` =~ m{/([\d.]+)};
    my $release = $minor == 22 ? 'bookworm' : $minor == 26 ? 'trixie' : 'sid';
    my $root = "$FindBin::Bin/..";
    my $dir = "$root/objs/fair-$version";
    my $module = "$dir/usr/lib/nginx/modules/ngx_http_upstream_fair_module.so";
    mkdir $dir;
    open my $lock, '>>', "$dir/lock" or return;
    flock $lock, LOCK_EX;
    system "cd '$dir' && timeout 120 '$root/tools/apt-fetch' $release libnginx-mod-http-upstream-fair >fetch.log 2>&1"
        . ' && for package in *.deb; do dpkg-deb -x "$package" .; done' unless -e $module;
    my ($status) = -e $module ? $t->nginx_t("load_module $module;\n" . $t->globals(module => 0) . "\nevents {}\n") : 1;
    return $status == 0 ? $module : undef;
}

subtest 'the balancer of another module' => sub {
    my $fair = fair() // plan skip_all => 'no package of nginx-upstream-fair for this nginx';
    my $module = Test::Upsync::module();
    my $ours = "load_module $module;";
    my $theirs = "load_module $fair;";
    my $servers = "server $a; server $b;";
    my $conf = sub {
        my ($load, $block) = @_;
        return "$load\n" . $t->globals(module => 0) . "\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\nupstream app { $block }\n}\n";
    };
    my $emerg = 'upsync: upstream "app": a balancing directive of ngx_http_upstream_fair_module stands in the block, '
        . 'expected one of nginx\'s own beside "upsync", "upsync_lb" and "check"';
    my $upsync = 'upsync 127.0.0.1:8500/v1/kv/app/ upsync_type=consul;';
    for my $load ("$ours\n$theirs", "$theirs\n$ours") {
        my $order = $load =~ /^load_module \Q$module/ ? 'ours first' : 'ours last';
        for my $block ((map { ("$_ fair;", "fair; $_", "fair; $_ keepalive 4;", "fair; keepalive 4; $_", "$_ fair; keepalive 4;",
            "keepalive 4; fair; $_") } $upsync, 'upsync_lb roundrobin;', 'upsync_lb local 10.0.0.0/8;', 'least_time header;'),
            'least_conn; upsync_lb least_conn; fair;', 'fair no_rr; upsync_lb roundrobin;') {
            next if $has_least_time && $block =~ /least_time/;
            my ($status, $output) = $t->nginx_t($conf->($load, "$block $servers"));
            my ($told) = "$status @{[ $output =~ /^nginx: \[emerg\] (.*)$/mg ]}" =~ s{ in \S+/nginx\.conf:(\d+)$}{}r;
            is($told, "1 $emerg", "$order: " . $block =~ s/upsync 127.*?;/upsync;/r);
        }
        # A method of nginx's own that stands behind it takes its place, and nginx says so.
        my ($status, $output) = $t->nginx_t($conf->($load, "fair; least_conn; upsync_lb least_conn; $servers"));
        is($status, 0, "$order: replaced by one of nginx's own") || diag $output;
        is(scalar(() = $output =~ /load balancing method redefined/g), 1, 'with a warning');

        for my $block ('fair;', 'fair; keepalive 4;') {
            ($status, $output) = $t->nginx_t($conf->($load, "$block $servers"));
            is("$status @{[ $output =~ /\[(?:emerg|warn)\].*/g ]}", '0 ', "$order: a block without ours: $block");
        }
    }

    # In a plain block it works as without us. That it does shows in whom it asks: not the busy one.
    for my $posting (0, 1) {
        my $interface = $posting ? "server { listen 127.0.0.1:%%PORT_7%%; location / { dyups_interface; } }" : '';
        my $globals = $t->globals(module => 0);
        my $nginx = $t->another_nginx("$ours\n$theirs\n$globals\n" . <<"CONF")->run;
worker_processes 1;
events {}
http {
    $http
    upstream plain { fair; server $held; server $a; server $b; }
    upstream kept { fair; server $held; server $a; server $b; keepalive 4; }
    upstream other { upsync_lb roundrobin; server $c; server $d; }
    server {
        listen 127.0.0.1:%%PORT_6%%;
        location /plain { proxy_pass http://plain; }
        location /kept { proxy_pass http://kept; }
        location /other { proxy_pass http://other; }
    }
    $interface
}
CONF
        my $port = $t->port(6);
        for my $name ('plain', 'kept') {
            my $request = hold($port, "/$name") or fail("$name: held"), next;
            is_deeply([ sort keys %{ counts(who($port, "/$name", 20)) } ], [ sort $a, $b ], "$name: who has nothing to do");
            is(release($request), 'slow', 'the request ends');
        }
        my $request = hold($port, '/kept');
        cmp_ok(connections($port, '/kept', 6), '<=', 2, 'connections are kept');
        is(release($request), 'slow', 'the request ends') if $request;
        is_deeply(counts(who($port, '/other', 10)), { $c => 5, $d => 5 }, 'a block of ours beside it');
        if ($posting) {
            my $answer = http('POST', $t->port(7), '/upstream/plain', body => "server $c; server $d;");
            is($answer->{body}, 'success', 'a list is posted');
            is_deeply(counts(who($port, '/plain', 10)), { $c => 5, $d => 5 }, 'that serves');
            $answer = http('POST', $t->port(7), '/upstream/plain/reset');
            is($answer->{body}, 'success', 'reset');
            my $request = hold($port, '/plain') or fail('held'), next;
            is_deeply([ sort keys %{ counts(who($port, '/plain', 20)) } ], [ sort $a, $b ], 'the other balancer again');
            is(release($request), 'slow', 'the request ends');
        }
        ok($nginx->stop, 'it ends');
    }
};

$t->done;
