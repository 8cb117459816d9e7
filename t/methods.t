#!/usr/bin/perl

# Balancing methods: the same choice as stock nginx makes, what all of them have to honour, and where
# the method of a list comes from.
#
# Which servers a request went to is told by a header, so most servers here are dead: a connection
# that is refused costs little, and with max_fails=0 it has no effect.
#
# TEST_KEYS is the number of keys that are compared (10,000).

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::IP;
use List::Util qw(max shuffle sum0);
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Process;

my $key_number = $ENV{TEST_KEYS} // 10_000;

my $t = Test::Upsync->new;
my ($dead, $live, $later, $back) = map { $t->free_port } 1 .. 4;
srand 4;

# Name => directive.
my @methods = (
    [ rr => '' ],
    [ least_conn => 'least_conn;' ],
    [ ip_hash => 'ip_hash;' ],
    [ hash => 'hash $arg_k;' ],
    [ chash => 'hash $arg_k consistent;' ],
    [ random => 'random;' ],
    [ two => 'random two;' ],
    [ two_conn => 'random two least_conn;' ],
    [ two_header => 'random two least_time=header;' ],
    [ two_last => 'random two least_time=last_byte;' ],
    [ header => 'least_time header;' ],
    [ last => 'least_time last_byte;' ],
    [ local => '' ],
);
my %text = map { @$_ } @methods;
my @names = map { $_->[0] } @methods;
# It cannot be posted. All servers of this test are in its networks.
my $local = 'upsync_lb local 127.0.0.0/8;';

# What is compared with stock nginx: the directive, and what makes a block of nginx.conf ours.
my %hashes = (
    chash => [ 'hash $arg_k consistent;', 'upsync_lb hash_ketama;' ],
    hash => [ 'hash $arg_k;', 'upsync_lb hash_modula;' ],
    ip => [ 'ip_hash;', 'upsync_lb ip_hash;' ],
);
my %keys = (
    two_parts => [ 'hash $arg_k$cookie_a consistent;', 'upsync_lb hash_ketama;' ],
    braces => [ 'hash ${uri}x;', 'upsync_lb hash_modula;' ],
    mapped => [ 'hash $mapped consistent;', 'upsync_lb hash_ketama;' ],
    from_set => [ 'hash $from_set;', 'upsync_lb hash_modula;' ],
    address => [ 'hash $remote_addr:$http_x_more consistent;', 'upsync_lb hash_ketama;' ],
    # As nginx-upsync-module wants it.
    uri => [ 'hash $uri consistent;', 'upsync_lb hash_ketama;' ],
);
# Points are made of a server's text.
my %spellings = (
    others => "server unix:/no/such.sock max_fails=0; server [::1]:$dead max_fails=0; "
        . "server [fd00:0::1]:$dead down; server 127.20.1.2:$dead max_fails=0;",
);

my @sizes = (1, 2, 3, 10, 65, 200);
# These are compared with all keys, others with a fifth of them.
my %is_full = map { $_ => 1 } qw(chash_10 chash_200 hash_10 hash_200 ip_200);
my @posted_sizes = (3, 200);
my %lists = map { $_ => list($_) } @sizes;

# Weights 1 to 10 in no order; some are down.
sub list {
    my $size = shift;
    return join "\n", shuffle map {
        server($_, 'weight=' . (1 + int rand 10) . ($_ % 7 == 3 ? ' down' : ''));
    } 1 .. $size;
}

sub server {
    my ($number, $more) = @_;
    return sprintf 'server %s max_fails=0 %s;', address($number), $more // '';
}

sub address {
    my ($number, $port) = @_;
    return '127.20.' . ($number >> 8) . '.' . ($number & 255) . ':' . ($port // $dead);
}

my (%stock, %ours);
while (my ($name, $words) = each %hashes) {
    for my $size (@sizes) {
        $stock{"${name}_$size"} = "$words->[0]\n$lists{$size}";
        $ours{"${name}_$size"} = "@$words\n$lists{$size}";
    }
}
while (my ($name, $words) = each %keys) {
    $stock{"key_$name"} = "$words->[0]\n$lists{10}";
    $ours{"key_$name"} = "@$words\n$lists{10}";
}
while (my ($name, $servers) = each %spellings) {
    $stock{"spelling_$name"} = "hash \$arg_k consistent; $servers";
    $ours{"spelling_$name"} = "hash \$arg_k consistent; upsync_lb hash_ketama; $servers";
}
# These get their lists later.
my $nothing = 'server 127.0.0.1:1 down;';
$ours{$_} = /_local$/ ? "$local $nothing" : $nothing for qw(posted shares removal back alone least times keyless),
    map { ("any_$_", "slow_$_", "renewed_$_", "full_$_") } @names;
$ours{chosen} = "hash \$arg_k; $nothing";
$ours{template} = "ip_hash; $nothing";
$ours{lines} = 'upsync_lb roundrobin; ' . server(1, 'slow_start=1h') . server(2, 'drain') . server(3, 'slow_start=1500ms');

# Servers in the test's own hands.
my @held = map { listener($_) } 211 .. 214;
my @held_addresses = map { address_of($_) } @held;
my %held_weight;
@held_weight{@held_addresses} = (1, 2, 3, 6);
my $held_servers = join '', map { "server $_ weight=$held_weight{$_};" } @held_addresses;
$stock{least_stock} = "least_conn; $held_servers";
$ours{least_block} = "least_conn; upsync_lb least_conn; $held_servers";

my $has_realip = `@{[Test::Upsync::nginx_binary()]} -V 2>&1` =~ /http_realip_module/;
my $has_ipv6 = IO::Socket::IP->new(LocalHost => '::1', Listen => 1);

sub http_block {
    my ($port, $socket, $upstreams) = @_;
    my $blocks = join '', map { "    upstream $_ {\n$upstreams->{$_}\n}\n" } sort keys %$upstreams;
    my $locations = join '', map { <<"CONF" } sort keys %$upstreams;
        location /$_ { proxy_pass http://$_; }
        location /walk/$_ { proxy_next_upstream error; proxy_next_upstream_tries 3; proxy_pass http://$_; }
        location /all/$_ { proxy_next_upstream error; proxy_pass http://$_; }
CONF
    my $realip = $has_realip ? 'set_real_ip_from 127.0.0.1; real_ip_header X-Client;' : '';
    my $ipv6 = $has_ipv6 ? "listen [::1]:$port;" : '';
    return <<"CONF";
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000;
    proxy_next_upstream off;
    proxy_ignore_client_abort on;
    map \$arg_k \$mapped { default "to-\$arg_k"; ~1 one; }
    add_header X-Tried "\$status \$upstream_addr" always;
$blocks
    server {
        listen 127.0.0.1:$port reuseport;
        listen unix:%%TESTDIR%%/$socket;
        $ipv6
        $realip
        # Each refused connection would have a line.
        error_log error.log alert;
        set \$from_set "of \$arg_k";
$locations
        location /by/ { proxy_pass http://\$http_x_upstream; }
    }
CONF
}

$t->another_nginx($t->globals(module => 0) . "\n" . <<"EOF")->run;
worker_processes 1;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
@{[http_block('%%PORT_1%%', 'stock.sock', \%stock)]}
}
EOF

$t->another_nginx($t->globals(module => 0) . "\n" . <<"EOF")->run;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    server {
        listen 0.0.0.0:$live;
        location / { return 200 "hello\\n"; }
    }
}
EOF

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 4;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    upsync_zone 16m;
    dyups_upstream template;
    dyups_state_path %%TESTDIR%%/state;
@{[http_block('%%PORT_0%%', 'ours.sock', \%ours)]}
    server {
        listen 127.0.0.1:%%PORT_2%%;
        location / { dyups_interface; }
    }
}
EOF
$t->run;

# A way that requests go: a connection, and how their paths begin.
sub way {
    my ($address, $path) = @_;
    return { path => $path, connection => http_connect($address), rest => '' };
}

sub ours { return way($t->port(0), "/$_[0]") }
sub stock { return way($t->port(1), "/$_[0]") }

# Sends the same requests on each way: the rest of the path, or [the rest, headers]. Returns for each
# way the status and the servers tried, "502 127.0.0.1:80, 127.0.0.2:80".
sub picks {
    my ($ways, @requests) = @_;
    my @picks = map { [] } @$ways;
    while (my @part = splice @requests, 0, 200) {
        for my $way (@$ways) {
            $way->{connection}->send(join '', map {
                my ($rest, $headers) = ref $_ ? @$_ : $_;
                "GET $way->{path}$rest HTTP/1.1\r\nHost: a\r\n" . ($headers // '') . "\r\n";
            } @part);
        }
        for (0 .. $#$ways) {
            receive($ways->[$_], $picks[$_], scalar @part) or return @picks;
        }
    }
    return @picks;
}

sub receive {
    my ($way, $picks, $number) = @_;
    my $until = @$picks + $number;
    my $socket = $way->{connection}{socket};
    my $select = IO::Select->new($socket);
    for (;;) {
        my $end = 0;
        while ($way->{rest} =~ /\r\nX-Tried: ([^\r]*)\r\n/g) {
            push @$picks, $1;
            $end = pos $way->{rest};
        }
        substr $way->{rest}, 0, $end, '';
        return 1 if @$picks >= $until;
        next if $select->can_read(10) && sysread $socket, $way->{rest}, 1 << 20, length $way->{rest};
        diag "no answer on $way->{path} after " . @$picks;
        return 0;
    }
}

# The servers that were tried, of the picks of one way; the first of each.
sub tried { return map { [ split /, /, (split / /, $_, 2)[1] ] } @{ $_[0] } }
sub firsts { return map { $_->[0] } tried(@_) }

sub counts { my %counts; $counts{$_}++ for @_; return \%counts }

# Clients and keys of all kinds.
sub any_requests {
    my $number = shift;
    return map { [ '?k=' . int rand 1e9, client() ] } 1 .. $number;
}

sub client {
    my $address = rand() < .8
        ? join '.', map { int rand 256 } 1 .. 4
        : join ':', map { sprintf '%x', rand 65536 } 1 .. 8;
    return "X-Client: $address\r\n";
}

sub post {
    my ($upstream, $body) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $answer = http('POST', $t->port(2), "/upstream/$upstream", body => $body, timeout => 20);
    return $answer->{status} == 200
        || ok(0, "$upstream is posted") || diag "$body\n$answer->{status} $answer->{body}";
}

sub shown { return json(http_get($t->port(2), "/upstream/$_[0]?format=json")->{body}) }

sub connections { return { map { $_->{server} => $_->{connections} } @{ shown($_[0])->{servers} } } }

# The names of a hash are these, and no others.
sub has_only {
    my ($counts, $name, @servers) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(join(' ', sort keys %$counts), join(' ', sort @servers), $name);
}

sub is_same {
    my ($ours, $stock, $name) = @_;
    my ($number, $last) = (scalar @$stock, max(scalar @$ours, scalar @$stock) - 1);
    my @other = grep { ($ours->[$_] // '') ne ($stock->[$_] // '') } 0 .. $last;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return 1 if ok($number && !@other, "$name: $number alike");
    diag scalar(@other) . ' others: ' . join '; ', map {
        "request $_: " . ($ours->[$_] // 'none') . ', expected ' . ($stock->[$_] // 'none')
    } @other > 3 ? @other[ 0 .. 2 ] : @other;
    return 0;
}

# --------------------------------------------------------------------------------------------------
# Servers of the test's own

sub listener {
    my ($host, $port) = split /:/, address(shift, $t->free_port);
    my $listener = IO::Socket::INET->new(LocalAddr => $host, LocalPort => $port, Listen => 512, ReuseAddr => 1);
    return $listener // die "$host:$port: $!\n";
}

sub address_of { my $socket = shift; return $socket->sockhost . ':' . $socket->sockport }

# A process that answers for listeners: [listener, seconds until the header, seconds from there to
# the rest]. X-Most says how many requests a server ever had at a time.
sub timed_servers {
    my @servers = @_;
    return Test::Upsync::Process->spawn(output => $t->testdir . '/timed.log', code => sub {
        $SIG{PIPE} = 'IGNORE';
        my %listening = map { $_->[0]->fileno => { now => 0, most => 0, delays => [ @$_[1, 2] ] } } @servers;
        my $select = IO::Select->new(map { $_->[0] } @servers);
        my (%asking, @due);
        for (;;) {
            @due = sort { $a->{at} <=> $b->{at} } @due;
            for my $socket ($select->can_read(@due ? max(0, $due[0]{at} - time) : undef)) {
                if (my $server = $listening{ $socket->fileno }) {
                    my $new = $socket->accept or next;
                    $asking{ $new->fileno } = { socket => $new, server => $server, head => '' };
                    $select->add($new);
                } else {
                    timed_request($select, \%asking, \@due, $socket);
                }
            }
            timed_answer(\@due, shift @due) while @due && $due[0]{at} <= time;
        }
    });
}

sub timed_request {
    my ($select, $asking, $due, $socket) = @_;
    my $one = $asking->{ $socket->fileno };
    my $read = sysread $socket, $one->{head}, 4096, length $one->{head};
    return if $read && $one->{head} !~ /\r\n\r\n/;
    $select->remove($socket);
    delete $asking->{ $socket->fileno };
    return unless $read;
    my $server = $one->{server};
    $server->{most} = $server->{now} if ++$server->{now} > $server->{most};
    push @$due, { %$one, at => time + $server->{delays}[0] };
    return;
}

sub timed_answer {
    my ($due, $one) = @_;
    my $server = $one->{server};
    my $rest = $one->{has_header} ? 0 : $server->{delays}[1];
    # Before nginx can know that it ends.
    $server->{now}-- unless $rest;
    syswrite $one->{socket}, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n"
        . "X-Most: $server->{most}\r\n\r\n" unless $one->{has_header};
    if ($rest) {
        @$due = sort { $a->{at} <=> $b->{at} } @$due, { %$one, at => time + $rest, has_header => 1 };
    } else {
        syswrite $one->{socket}, 'done.';
        close $one->{socket};
    }
    return;
}

# --------------------------------------------------------------------------------------------------
# What takes its time begins here. Other tests go on meanwhile.

my %timed = (fast => listener(201), slow => listener(202), late => listener(203));
my $timed = timed_servers([ $timed{fast}, 0, 0 ], [ $timed{slow}, .4, 0 ], [ $timed{late}, .1, .5 ]);
my %timed_address = map { $_ => address_of($timed{$_}) } keys %timed;

sub post_timed {
    my ($method, $fail_timeout, @servers) = @_;
    return post(times => $method . join '', map { "server $timed_address{$_} fail_timeout=$fail_timeout;" } @servers);
}

# One request after the other, by any worker.
sub in_sequence {
    my ($path, $number) = @_;
    return map { (split / /, http_get($t->port(0), $path)->{headers}{'x-tried'} // '')[1] // '' } 1 .. $number;
}

subtest 'least_time' => sub {
    for ('least_time header;', 'least_time last_byte;', 'random two least_time=header;') {
        post_timed($_, '10s', qw(fast slow));
        my $counts = counts(in_sequence('/times', 30));
        cmp_ok($counts->{ $timed_address{fast} } // 0, '>=', 26, "$_ the fast one") or diag explain $counts;
    }
    for ([ 'least_time header;', 'late' ], [ 'least_time last_byte;', 'slow' ]) {
        my ($method, $better) = @$_;
        # Times are forgotten when a server leaves.
        post_timed($method, '10s', 'fast');
        post_timed($method, '10s', qw(slow late));
        my $counts = counts(in_sequence('/times', 5));
        cmp_ok($counts->{ $timed_address{$better} } // 0, '>=', 3, "$method the one that is sooner there") or diag explain $counts;
    }
    # From now on they are halved each second.
    post_timed('least_time header;', 0, qw(fast slow));
    in_sequence('/times', 3);
};

my $slow_start = 6;
my $slow_since;

subtest 'slow_start: a small share at first' => sub {
    for my $name (@names) {
        my $body = sub { $text{$name} . join '', map { server($_, "slow_start=${slow_start}s") } 1 .. $_[0] };
        post("slow_$name", $body->(2));
        my $way = ours("slow_$name");
        picks([ $way ], any_requests(10));

        $slow_since = time;
        post("slow_$name", $body->(3));
        my ($picks) = picks([ $way ], any_requests(150));
        my $took = time - $slow_since;
        my $count = counts(firsts($picks))->{ address(3) } // 0;
        SKIP: {
            skip "this machine took $took s", 1 if $took > $slow_start / 6;
            # 50 by its weight, 12 at a sixth of the time.
            cmp_ok($count, '<', 30, sprintf '%s: %d of 150 until %.2f s', $name, $count, $took);
        }
        is(scalar(grep { !/^502 127/ } @$picks), 0, 'and each request has a server');
    }

    post(alone => server(1));
    post(alone => server(2, 'slow_start=1h'));
    has_only(counts(map { firsts($_) } picks([ ours('alone') ], ('') x 30)), 'a single server has all', address(2));

    # Nobody is there who could have what they refuse. Keys stay with their servers.
    for my $name (@names) {
        my @requests = any_requests(600);
        my $picks_of = sub {
            post("renewed_$name", join '', $text{$name}, @_);
            return (picks([ ours("renewed_$name") ], @requests))[0];
        };
        $picks_of->(map { server($_, 'slow_start=1h') } 1, 2);
        my $picks = $picks_of->(map { server($_, 'slow_start=1h') } 3 .. 12);
        is(scalar(grep { !/^502 127/ } @$picks), 0, "$name: while all are growing each request has a server");
        my $counts = counts(firsts($picks));
        my @few = grep { ($counts->{ address($_) } // 0) < 20 } 3 .. 12;
        is("@few", '', 'and each server a third of its share at least') or diag explain $counts;
        next if $name !~ /hash/;
        my $grown = $picks_of->(map { server($_) } 3 .. 12);
        my $same = grep { $picks->[$_] eq $grown->[$_] } 0 .. $#$picks;
        cmp_ok($same, '>', 540, "of 600 so many go where they go later: $same");
    }

    my ($lines) = http_get($t->port(2), '/detail')->{body} =~ /^lines\n(.*?)^\n/ms;
    is_deeply([ $lines =~ / down=0(.*)$/mg ], [ ' slow_start=3600s', ' drain=1', ' slow_start=1500ms' ], 'lines of nginx.conf')
        or diag $lines;
    has_only(counts(map { firsts($_) } picks([ ours('lines') ], ('') x 40)), 'are as they say', address(1), address(3));
    is_deeply([ values %{ counts(map { firsts($_) } picks([ ours('lines') ], ('') x 40)) } ], [ 20, 20 ],
        'nor do they grow when nginx starts');
};

# --------------------------------------------------------------------------------------------------

subtest 'the choice of stock nginx' => sub {
    for my $name (sort keys %hashes) {
        my @requests = map { $name eq 'ip' ? [ '', client() ] : "?k=$_-" . int rand 1e6 } 1 .. $key_number;
        my %stock;
        for my $size (@sizes) {
            my @some = @requests[ 0 .. ($is_full{"${name}_$size"} ? $#requests : $#requests / 5) ];
            ($stock{$size}, my $picks) = picks([ stock("${name}_$size"), ours("${name}_$size") ], @some);
            is_same($picks, $stock{$size}, "$hashes{$name}[0] of $size servers");
            next if $size < 10;
            my @walks = picks([ stock("walk/${name}_$size"), ours("walk/${name}_$size") ], @requests[ 0 .. 499 ]);
            is(scalar(grep { @$_ == 3 } tried($walks[0])), 500, 'where each request tries three');
            is_same(@walks[1, 0], 'also in order');
        }
        for my $size (@posted_sizes) {
            post(posted => "$hashes{$name}[0]\n$lists{$size}");
            my @some = @requests[ 0 .. $#{ $stock{$size} } ];
            is_same(posted_picks($stock{$size}, @some), $stock{$size}, "$size servers, posted");
        }
    }
};

# A long ring is made meanwhile.
sub posted_picks {
    my ($stock, @requests) = @_;
    my $way = ours('posted');
    wait_until {
        my ($picks) = picks([ $way ], @requests[ 0 .. 49 ]);
        "@$picks" eq "@$stock[0 .. 49]";
    } 5;
    return (picks([ $way ], @requests))[0];
}

subtest 'any key, in a block and posted' => sub {
    my @requests = map {
        my $more = $_ % 3 ? '' : "Cookie: a=" . int(rand 9) . "\r\nX-More: $_\r\n";
        [ 'p' . int(rand 500) . '?k=' . int rand 1000, $more . client() ];
    } 1 .. 300;
    my $picks_of = sub {
        my ($way, $upstream) = @_;
        return (picks([ $way ], map { [ $_->[0], "X-Upstream: $upstream\r\n$_->[1]" ] } @requests))[0];
    };
    for my $name (sort keys %keys) {
        my $stock = $picks_of->(stock('by/'), "key_$name");
        cmp_ok(keys %{ counts(@$stock) }, '>', 5, 'over many servers');
        is_same($picks_of->(ours('by/'), "key_$name"), $stock, "@{ $keys{$name} }");
        post(posted => "$keys{$name}[0]\n$lists{10}");
        is_same($picks_of->(ours('by/'), 'posted'), $stock, "$keys{$name}[0] posted");
    }

    post(keyless => 'hash $arg_nobody$cookie_nobody consistent;' . join '', map { server($_) } 1 .. 4);
    my ($picks) = picks([ ours('keyless') ], ('') x 40);
    is_deeply([ values %{ counts(firsts($picks)) } ], [ (10) x 4 ], 'an empty key goes in turn');
    ($picks) = picks([ ours('keyless') ], ('?nobody=7') x 40);
    is(keys %{ counts(firsts($picks)) }, 1, 'one that is not empty does not');

    my $answer = http('POST', $t->port(2), '/upstream/keyless', body => 'hash $there_is_none; ' . server(1));
    is($answer->{status}, 400, 'a variable that nginx does not know');
    like($answer->{body}, qr/unknown variable "\$there_is_none" in "hash"/, 'is named');
    ($picks) = picks([ ours('keyless') ], ('?nobody=7') x 40);
    is(keys %{ counts(firsts($picks)) }, 1, 'and nothing changed');
};

subtest 'servers of any spelling' => sub {
    my @requests = map { "?k=$_" } 1 .. 500;
    for my $name (sort keys %spellings) {
        my @picks = picks([ stock("spelling_$name"), ours("spelling_$name") ], @requests);
        cmp_ok(keys %{ counts(firsts($picks[0])) }, '>', 1, 'of several servers');
        is_same(@picks[1, 0], $spellings{$name});
        post(posted => "hash \$arg_k consistent; $spellings{$name}");
        is_same((picks([ ours('posted') ], @requests))[0], $picks[0], 'posted');
    }
};

subtest 'clients by their own addresses' => sub {
    my @clients = map { join '.', 127, map { 1 + int rand 250 } 1 .. 3 } 1 .. 60;
    my (@ours, @stock);
    for my $client (@clients) {
        for ([ 0, \@ours ], [ 1, \@stock ]) {
            my ($number, $picks) = @$_;
            my $socket = IO::Socket::INET->new(
                PeerAddr => '127.0.0.1', PeerPort => $t->port($number), LocalAddr => $client) or die "$client: $!\n";
            my $way = { path => '/ip_200', connection => http_connect($t->port($number)), rest => '' };
            $way->{connection}{socket} = $socket;
            push @$picks, map { @$_ } picks([ $way ], '');
        }
    }
    is_same(\@ours, \@stock, 'IPv4');
    my @others = [ 'unix', map { 'unix:' . $t->testdir . "/$_.sock" } 'ours', 'stock' ];
    push @others, [ 'IPv6', map { '[::1]:' . $t->port($_) } 0, 1 ] if $has_ipv6;
    for (@others) {
        my ($name, @addresses) = @$_;
        my @picks = map { picks([ way($_, '/ip_200') ], ('') x 3) } @addresses;
        is_same(@picks, $name);
        is(keys %{ counts(@{ $picks[0] }) }, 1, 'always the same');
    }
};

subtest 'consistent: a server less' => sub {
    my @requests = map { "?k=$_" } 1 .. 3000;
    my $body = sub { 'hash $arg_k consistent;' . join '', map { server($_, 'weight=' . ($_ % 3 + 1)) } @_ };
    post(removal => $body->(1 .. 20));
    my ($before) = picks([ ours('removal') ], @requests);
    my @before = firsts($before);
    is(keys %{ counts(@before) }, 20, 'of 20');
    for my $gone (1, 7, 20) {
        post(removal => $body->(grep { $_ != $gone } 1 .. 20));
        my ($picks) = picks([ ours('removal') ], @requests);
        my @without = firsts($picks);
        my @moved = grep { $before[$_] ne $without[$_] } 0 .. $#before;
        my @had = grep { $before[$_] eq address($gone) } 0 .. $#before;
        is("@moved", "@had", 'only its keys go to others: ' . @moved);
        cmp_ok(keys %{ counts(@without[@moved]) }, '>', 5, 'to many others');
    }
    post(removal => $body->(1 .. 20));
    is_same((picks([ ours('removal') ], @requests))[0], $before, 'when all are there again');
};

# --------------------------------------------------------------------------------------------------

subtest 'shares' => sub {
    my %weight = map { address($_) => $_ } 1 .. 4;
    my $servers = join '', map { server($_, "weight=$_") } 1 .. 4;
    for (qw(random two two_conn)) {
        post(shares => "$text{$_} $servers");
        is_share($_, %weight);
    }
    # With weights the best of two by its time and weight has more than its weight, as with nginx's own.
    for (qw(two_header two_last)) {
        post(shares => $text{$_} . join '', map { server($_) } 1 .. 4);
        is_share($_, map { $_ => 2.5 } keys %weight);
    }
    post(shares => $servers);
    my @picks = map { map { firsts($_) } picks([ ours('shares') ], ('') x 37) } 1 .. 20;
    my $wrong = 0;
    for my $start (0 .. @picks - 10) {
        my $counts = counts(@picks[ $start .. $start + 9 ]);
        $wrong++ if grep { abs(($counts->{$_} // 0) - $weight{$_}) > 1 } keys %weight;
    }
    is($wrong, 0, 'round robin: in any window each has its weight, one more or one less');
    is_deeply(counts(@picks), { map { $_ => 74 * $weight{$_} } keys %weight }, 'and exactly its weight in all');
};

sub is_share {
    my ($name, %weight) = @_;
    my $counts = counts(map { firsts($_) } picks([ ours('shares') ], ('') x 2000));
    # Six times the standard deviation of the largest, which is 22.
    my @off = grep { abs(($counts->{$_} // 0) - 200 * $weight{$_}) > 132 } keys %weight;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is("@off", '', "$name: by weight") || diag explain $counts;
}

# Stock nginx shows that the rule is nginx's.
subtest 'least_conn: the least loaded by weight' => sub {
    post(least => "least_conn; $held_servers");
    for my $name ('least_stock', 'least_block', 'least') {
        my %held = map { $_ => [] } @held_addresses;
        my $wrong = 0;
        # First they come, then they come and go, from any server.
        for my $step (1 .. 80) {
            my ($busy) = grep { @{ $held{$_} } } shuffle @held_addresses;
            if ($step > 24 && $step % 2 && $busy) {
                answer(splice @{ $held{$busy} }, rand @{ $held{$busy} }, 1);
                next;
            }
            my $client = begin($name);
            my ($listener) = IO::Select->new(@held)->can_read(5);
            $listener or ok(0, "step $step: nobody is asked"), last;
            my $at = address_of($listener);
            my %load = map { $_ => @{ $held{$_} } / $held_weight{$_} } @held_addresses;
            if (grep { $load{$_} < $load{$at} - 1e-9 } @held_addresses) {
                diag "step $step: $at of ", explain \%load unless $wrong++;
            }
            push @{ $held{$at} }, { client => $client, server => scalar $listener->accept };
        }
        is($wrong, 0, "$name: each request goes to the least loaded");
        my %counted = map { $_ => scalar @{ $held{$_} } } @held_addresses;
        cmp_ok(sum0(values %counted), '>', 20, 'some are left');
        is_deeply(connections($name), \%counted, 'and counted') if $name ne 'least_stock';
        answer($_) for map { @$_ } values %held;
        is(sum0(values %{ connections($name) }), 0, 'in the end there are none') if $name ne 'least_stock';
    }
};

sub begin {
    my $name = shift;
    my $client = http_connect($t->port($name eq 'least_stock' ? 1 : 0));
    $client->send("GET /$name HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    return $client;
}

# Answers a request that a listener of the test has accepted. nginx closes its client's connection
# when it is done.
sub answer {
    my $one = shift;
    my $head = '';
    while ($head !~ /\r\n\r\n/ && IO::Select->new($one->{server})->can_read(5)) {
        sysread $one->{server}, $head, 4096, length $head or last;
    }
    syswrite $one->{server}, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    close $one->{server};
    my $socket = $one->{client}{socket};
    1 while IO::Select->new($socket)->can_read(5) && sysread $socket, my $answer, 4096;
    return;
}

# --------------------------------------------------------------------------------------------------

subtest 'weight=0, down, drain, backup' => sub {
    for my $name (@names) {
        my $picks_of = sub {
            my ($number, @lines) = @_;
            post("any_$name", join "\n", $text{$name}, @lines);
            return (picks([ ours("any_$name") ], any_requests($number)))[0];
        };
        my @out = (server(2, 'weight=0'), server(3, 'down'), server(4, 'drain'));
        has_only(counts(firsts($picks_of->(40, server(1), @out, server(5, 'backup')))),
            "$name: the one that is usable", address(1));
        my @backups = (server(5, 'backup'), server(6, 'backup'), server(7, 'backup drain'), server(8, 'backup weight=0'));
        has_only(counts(firsts($picks_of->(40, @out, @backups))), 'backups when there is none', address(5), address(6));
        my @none = map { server($_, 'down') } 1 .. 3;
        is(join(';', @{ $picks_of->(3, @out, @none) }), join(';', ("502 any_$name") x 3), 'no server is no server');
    }
};

subtest 'servers that fail' => sub {
    my @live = map { 'server ' . address($_, $live) . ';' } 31, 32;
    my @asked;
    for my $name (@names) {
        my $picks_of = sub {
            my ($number, @lines) = @_;
            post("any_$name", join "\n", $text{$name}, @lines);
            return (picks([ ours("all/any_$name") ], any_requests($number)))[0];
        };
        my $picks = $picks_of->(60, @live, map { server($_) } 1 .. 5);
        is(scalar(grep { !/^200 / } @$picks), 0, "$name: each request finds one that is live");
        my @twice = grep { my $tried = $_; @$tried != keys %{ counts(@$tried) } } tried($picks);
        is(scalar @twice, 0, 'and asks none twice') or diag explain \@twice;
        ok((grep { @$_ > 1 } tried($picks)), 'of several');

        my $fails = 'max_fails=1 fail_timeout=1h';
        $picks = $picks_of->(60, (map { "server 127.20.2.$_:$dead $fails;" } 1 .. 3), "server 127.20.2.4:$live $fails backup;");
        is(scalar(grep { !/^200 .*127\.20\.2\.4:$live$/ } @$picks), 0, 'a backup serves when the others fail');
        is_deeply(counts(grep { /:$dead$/ } map { @$_ } tried($picks)), { map { ("127.20.2.$_:$dead" => 1) } 1 .. 3 },
            'which are asked once each');

        $picks = $picks_of->(60, @live, "server 127.20.3.1:$later max_fails=2 fail_timeout=1s;");
        is(scalar(grep { !/^200 / } @$picks), 0, 'one that fails beside others is not noticed');
        push @asked, scalar grep { /:$later/ } @$picks;
    }
    is(scalar(grep { $_ < 2 } @asked), 0, 'though it was asked') or diag "@asked";

    # It is a server from now on.
    $t->backends(0, listen => ["127.20.3.1:$later"]);
    my %left = map { $_ => ours("all/any_$_") } @names;
    my $all = wait_until {
        for (keys %left) {
            my ($picks) = picks([ $left{$_} ], any_requests(20));
            delete $left{$_} if grep { /^200 127\.20\.3\.1:/ } @$picks;
        }
        !%left;
    } 10;
    ok($all, 'after fail_timeout it is asked') or diag 'not by ' . join ' ', sort keys %left;
};

subtest 'max_conns is never exceeded' => sub {
    my (@servers, %addresses);
    for my $number (0 .. $#names) {
        my @listeners = map { listener(1000 + $number * 10 + $_) } 1 .. 4;
        $addresses{ $names[$number] } = [ map { address_of($_) } @listeners ];
        push @servers, map { [ $_, .02, 0 ] } @listeners;
    }
    my $process = timed_servers(@servers);
    for my $name (@names) {
        post("full_$name", $text{$name} . join '', map { "server $_ max_conns=3;" } @{ $addresses{$name} });
    }
    my $paths = join ', ', map { "\"/full_$_?k=\"" } @names;
    my $script = $t->write_file('burst.lua', <<"EOF");
local paths = { $paths }
local number = 0
request = function()
    number = number + 1
    local client = string.format("%d.%d.%d.1", math.random(1, 250), math.random(0, 255), math.random(0, 255))
    return wrk.format("GET", paths[number % #paths + 1] .. math.random(1, 1000000), { ["X-Client"] = client })
end
EOF
    my $result = wrk('http://127.0.0.1:' . $t->port(0), connections => 200, seconds => 2, script => $script);
    cmp_ok($result->{non_2xx}, '>', 0, "of $result->{requests} requests $result->{non_2xx} have no server");
    for my $name (@names) {
        wait_until { !sum0 values %{ connections("full_$name") } } 5, "$name: all end";
        my @most = map { http_get($_, '/')->{headers}{'x-most'} // '' } @{ $addresses{$name} };
        is("@most", '3 3 3 3', 'three at a time');
    }
    $process->stop;
};

# --------------------------------------------------------------------------------------------------

subtest 'where the method comes from' => sub {
    my @servers = map { server($_) } 1 .. 3;
    my $is = sub {
        my ($upstream, $is_hash, $shown, $name) = @_;
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        my %counts;
        for (1 .. 3) {
            my ($picks) = picks([ ours('by/') ], ([ '?k=7', "X-Upstream: $upstream\r\n" ]) x 20);
            $counts{$_}++ for firsts($picks);
        }
        is(keys %counts, $is_hash ? 1 : 3, "$name: " . ($is_hash ? 'a key has a server' : 'others too')) or diag explain \%counts;
        return is(shown($upstream)->{method}, $shown, 'as it is shown');
    };
    post(chosen => "@servers");
    $is->('chosen', 1, undef, "the block's");
    post(chosen => "random; @servers");
    $is->('chosen', 0, 'random', 'one that was posted');
    post(chosen => "@servers least_conn;");
    $is->('chosen', 0, 'least_conn', 'another');
    post(chosen => "hash \$uri consistent; @servers");
    $is->('chosen', 1, 'hash $uri consistent', 'with a key');
    post(chosen => "@servers");
    $is->('chosen', 1, undef, "the block's again");

    post('run.time' => "@servers");
    $is->('run.time', 1, undef, "the template's");
    post('run.time' => "least_conn; @servers");
    $is->('run.time', 0, 'least_conn', 'one that was posted');

    my $server = '/upstream/run.time/server';
    my $first = "$server/" . address(1);
    for ([ PATCH => $first, 'down' ], [ PATCH => $first, 'down=off' ], [ POST => $server, server(4) ], [ DELETE => "$server/" . address(4) ]) {
        my ($verb, $path, $body) = @$_;
        my $answer = http($verb, $t->port(2), $path, defined $body ? (body => $body) : ());
        is($answer->{status}, 200, "$verb $path") or diag $answer->{body};
        is(shown('run.time')->{method}, 'least_conn', 'keeps the method');
    }
    $is->('run.time', 0, 'least_conn', 'changed');
    post(chosen => "hash \$arg_k\$cookie_a consistent; @servers");
    post('another.one' => "least_time last_byte; @servers");
    post('back.again' => "random; @servers");
    post('back.again' => "@servers");

    my $all = sub {
        my $when = shift;
        $is->('run.time', 0, 'least_conn', "after $when");
        $is->('chosen', 1, 'hash $arg_k$cookie_a consistent', 'with its key');
        is(shown('another.one')->{method}, 'least_time last_byte', 'any other');
        $is->('back.again', 1, undef, 'or none');
    };
    ok($t->reload, 'reloaded');
    $all->('a reload');
};

# --------------------------------------------------------------------------------------------------
# What has taken its time ends here.

subtest 'slow_start: its weight in the end' => sub {
    wait_until { time > $slow_since + $slow_start } $slow_start + 1;
    for my $name (@names) {
        my ($picks) = picks([ ours("slow_$name") ], any_requests(300));
        my $count = counts(firsts($picks))->{ address(3) } // 0;
        ok($count > 50 && $count < 150, "$name: $count of 300");
    }

    # It fails, it grows, it has grown.
    my @live = map { 'server ' . address($_, $live) . ' slow_start=2s;' } 31, 32;
    my $failing = "127.20.4.1:$back";
    post(back => join '', @live, "server $failing slow_start=2s max_fails=1 fail_timeout=1s;");
    my $share = sub {
        my ($picks) = picks([ ours('all/back') ], ('') x 150);
        return scalar grep { /^200 \Q$failing\E$/ } @$picks;
    };
    is($share->(), 0, 'one that fails');
    $t->backends(0, listen => [$failing]);
    my $came;
    wait_until { $came = time; $share->() } 10, 'comes back';
    my $count = $share->();
    my $took = time - $came;
    SKIP: {
        skip "this machine took $took s", 1 if $took > .5;
        cmp_ok($count, '<', 25, "with a small share: $count of 150");
    }
    wait_until { $share->() == 50 } 10, 'and has its weight in the end';

    post(back => join '', @live, "server $failing slow_start=1h;");
    http('PATCH', $t->port(2), "/upstream/back/server/$failing", body => $_) for 'down', 'down=off';
    cmp_ok($share->(), '<', 25, 'one that was down grows');
};

subtest 'least_time: a slow server is asked again' => sub {
    wait_until { grep { $_ eq $timed_address{slow} } in_sequence('/times', 5) } 15, 'when its time is forgotten';
};

subtest 'a restart' => sub {
    ok($t->stop, 'stopped');
    $t->run;
    my %methods = ('run.time' => 'least_conn', chosen => 'hash $arg_k$cookie_a consistent',
        'another.one' => 'least_time last_byte', 'back.again' => undef);
    is(shown($_)->{method}, $methods{$_}, "$_ has its method") for sort keys %methods;
    my %counts = map {
        my ($picks) = picks([ ours('by/') ], ([ '?k=7', "X-Upstream: $_\r\n" ]) x 12);
        ($_ => scalar keys %{ counts(firsts($picks)) });
    } keys %methods;
    is_deeply(\%counts, { 'run.time' => 3, chosen => 1, 'another.one' => 3, 'back.again' => 1 }, 'in force') or diag explain \%counts;
};

$timed->stop;
$t->done;
