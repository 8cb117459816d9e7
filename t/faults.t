#!/usr/bin/perl

# Consul away, slow, restarted empty, or answering what it should not.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $backends = $t->backends(2);
my ($first, $second) = $backends->addresses;
my $defaults = 'weight=1 max_fails=2 fail_timeout=10s';
my $show = 'location /list { upstream_show; } location ~ ^/to/(\w+) { proxy_pass http://$1; }';

sub text {
    my ($upstream, @servers) = @_;
    my $count = @servers;
    return join '', "Upstream name: $upstream; Backend server count: $count\n",
        map { "        server $_ $defaults;\n" } @servers;
}

sub list_is {
    my ($port, $upstream, $servers, $name, $seconds) = @_;
    my ($expected, $list) = text($upstream, @$servers);
    wait_until { ($list = http_get($port, "/list?$upstream")->{body}) eq $expected } $seconds // 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($list, $expected, $name);
}

sub served { return http_get($_[0], "/to/$_[1]")->{body} =~ /^hello world by (\S+)$/ ? $1 : 'nobody' }

# CPU time that the workers of an nginx use in some seconds, in clock ticks.
sub ticks {
    my ($nginx, $seconds) = @_;
    my $used = sub {
        my $sum = 0;
        for my $pid ($nginx->workers) {
            open my $stat, '<', "/proc/$pid/stat" or next;
            my @fields = split ' ', <$stat> =~ s/.*\) //r;
            $sum += $fields[11] + $fields[12];
        }
        return $sum;
    };
    my $before = $used->();
    sleep $seconds;
    return $used->() - $before;
}

sub conf {
    my ($port, $upstreams) = @_;
    return <<"EOF";
%%TEST_GLOBALS%%
worker_processes 2;
env "RES_OPTIONS=timeout:1 attempts:1";
events {}
http {
    %%TEST_GLOBALS_HTTP%%
$upstreams
    server {
        listen 127.0.0.1:$port;
        $show
    }
}
EOF
}

subtest 'answers that are none' => sub {
    my $fake = $t->fake_consul;
    my $away = $t->fake_consul;
    my $json = 'answer is no JSON array of entries: ';
    my $key = '{"Key":"a","Value":null}';
    # The client's system tells a reset only to the one who reads next.
    my $cut = qr/connection reset|unexpected end of file/;
    # What is answered, and how it is told.
    my %faults = (
        nonsense => [{ body => 'nonsense' }, $json . 'expected ident at line 1 column 2'],
        empty => [{ body => '' }, $json . 'EOF while parsing a value at line 1 column 0'],
        html => [{ body => '<html></html>' }, $json . 'expected value at line 1 column 1'],
        unfinished => [{ body => "[$key," }, $json . 'EOF while parsing a value at line 1 column 26'],
        more => [{ body => "[$key]]" }, $json . 'trailing characters at line 1 column 27'],
        object => [{ body => $key }, $json . 'invalid type: map, expected an array at line 1 column 1'],
        string => [{ body => '"[]"' }, $json . 'invalid type: string \"[]\", expected an array at line 1 column 4'],
        number => [{ body => '7' }, $json . 'invalid type: integer `7`, expected an array at line 1 column 1'],
        deep => [{ body => '[' x 100_000 }, $json . 'EOF while parsing a list at line 1 column 100000'],
        large => [{ body => '[' . ' ' x 5000 . ']' }, 'answer of more than 4096 bytes, see upsync_max_body'],
        largechunks => [{ body => '[' . ' ' x 5000 . ']', chunked => 100 },
            'answer of more than 4096 bytes, see upsync_max_body'],
        denied => [{ status => 403, body => "ACL not found\n" }, 'answered 403 "ACL not found"'],
        moved => [{ status => 301, headers => [Location => '/v1/kv/other/'] }, 'answered 301'],
        error => [{ status => 500, body => 'No cluster leader' }, 'answered 500 "No cluster leader"'],
        truncated => [{ body => "[$key]" . ' ' x 1000, truncate => 500 }, 'unexpected end of file'],
        cutchunks => [{ body => "[$key]" . ' ' x 1000, chunked => 50, truncate => 500 }, 'unexpected end of file'],
        reset => [{ body => "[$key]" . ' ' x 1000, truncate => 500, end => 'reset' }, $cut],
        resethead => [{ raw => "HTTP/1.1 200 OK\r\nX-Con", end => 'reset' }, $cut],
        closed => [{ raw => '' }, 'unexpected end of file'],
        garbage => [{ raw => "\0\1\2 garbage\r\n\r\n" }, 'protocol: http parse fail: invalid HTTP version'],
        silent => [{ raw => '', end => 'hang' }, 'timed out'],
        half => [{ body => "[$key]" . ' ' x 1000, truncate => 500, end => 'hang' }, 'timed out'],
        trickle => [{ body => "[$key]" . ' ' x 1000, pace => [1, 0.02] }, 'timed out'],
        head => [{ headers => [Large => 'x' x 200_000] }, 'head of more than 131072 bytes'],
    );
    my %timeout = map { ($_ => '1s') } qw(silent half trickle);
    my @names = sort keys %faults;
    my $good = sub {
        my ($index, @servers) = @_;
        $_->reply_kv($index, { map { ("a/$_" => undef) } @servers }) for $fake, $away;
        $fake->reply_kv($index, { map { ("$_[0]/$_" => undef) } @servers }, path => "/v1/kv/$_/") for @names;
    };
    $good->(5, $first);
    my $upstream = sub {
        my ($name, $consul) = @_;
        my $timeout = $timeout{$name} // '1m';
        my $max = $name eq 'deep' ? '1m' : '4k';
        return "upstream $name {\nupsync " . $consul->address
            . "/v1/kv/$name/?token=s3cr3t upsync_type=consul upsync_interval=50ms upsync_timeout=$timeout;\n"
            . "upsync_max_body $max;\n}\n";
    };
    my $nginx = $t->another_nginx(conf('%%PORT_0%%',
        join '', $upstream->('refused', $away), map { $upstream->($_, $fake) } @names));
    $nginx->run;
    push @names, 'refused';
    list_is($t->port(0), $_, [$first], "$_: synced") for @names;

    # Else there may be no request to cut.
    wait_until { grep { $_->{uri} =~ /index=5/ } $away->requests } 5, 'a request waits at the one that goes away';
    my $mark = $nginx->log_mark;
    my $since = time;
    $fake->reply(path => "/v1/kv/$_/", index => 6, %{ $faults{$_}[0] }) for keys %faults;
    $away->stop;
    $faults{refused} = [undef, 'connection refused'];

    my $lines = sub {
        my ($name, $from) = @_;
        my @lines = $nginx->log($from) =~ /\] \d+#\d+: upsync: upstream "$name": (.*)$/mg;
        my $text = join "\n", map { s/127\.0\.0\.1:\d+/ADDRESS/r } @lines;
        # On a busy machine a good answer may be too late for so short a time-out.
        $text =~ s/^consul ADDRESS: timed out.*\nconsul ADDRESS answers again\n?//mg if $timeout{$name};
        return $text;
    };
    my $told = sub {
        my $why = shift;
        $why = quotemeta $why unless ref $why;
        return "^consul ADDRESS: (?:$why), keeping the last list \\(1 server\\), retrying\$";
    };
    my %expected = map { ($_ => $told->($faults{$_}[1])) } @names;
    # First the request under way is cut.
    $expected{refused} = $told->($cut) . "\n$expected{refused}";
    wait_until { !grep { $lines->($_, $mark) eq '' } @names } 5, 'each is told';
    # A few attempts later:
    sleep 0.1 while time - $since < 2.3;
    for (@names) {
        like($lines->($_, $mark), qr/$expected{$_}/m, "$_: told");
        is(1 + ($lines->($_, $mark) =~ tr/\n//), 1 + ($expected{$_} =~ tr/\n//), "$_: once");
        list_is($t->port(0), $_, [$first], "$_: the list is kept");
        is(served($t->port(0), $_), $first, "$_: and serves");
    }

    my @requests = $fake->requests($since);
    cmp_ok(scalar @requests, '>', scalar @names, 'requests of each upstream');
    is(scalar(grep { $_->{uri} !~ /[?&]token=s3cr3t(?:&|$)/ } @requests), 0, 'have the token');

    for my $name ('denied', 'nonsense', 'moved') {
        my @times = map { $_->{time} } grep { $_->{uri} =~ m{^/v1/kv/$name/} } $fake->requests($since);
        my @gaps = map { $times[$_] - $times[$_ - 1] } 1 .. $#times;
        cmp_ok(scalar @times, '>=', 3, "$name: tried again");
        # A step takes from half its time to the whole; the first request here may have waited.
        my @early = grep { $gaps[$_] < 0.05 * 2 ** $_ - 0.01 } 0 .. $#gaps;
        is("@early", '', "$name: each time later") or diag("gaps: @gaps");
    }

    $mark = $nginx->log_mark;
    $good->(7, $first, $second);
    $away->run;
    list_is($t->port(0), $_, [$second, $first], "$_: synced again", 10) for @names;
    for (@names) {
        my $late = $timeout{$_} ? '\n?(?:consul ADDRESS: timed out.*)?' : '';
        like($lines->($_, $mark), qr/^2 servers \(1 added, .*\nconsul ADDRESS answers again$late$/, "$_: told once");
    }
    unlike($nginx->log, qr/s3cr3t/, 'the log has it nowhere');
    $nginx->stop;
};

subtest 'answers of odd form' => sub {
    my $fake = $t->fake_consul;
    my @indexless = qw(zero none);
    my %odd = (
        zero => [[index => 0], [index => 0]],
        none => [[], []],
        backwards => [[index => 100], [index => 50]],
        case => [[headers => ['x-CONSUL-indeX' => 7]], [headers => ['X-CONSUL-INDEX' => 8]]],
        headers => [[index => 5, headers => [map { ("X-$_" => 'x' x 100) } 1 .. 100]],
            [index => 6, headers => [map { ("X-$_" => '') } 1 .. 100]]],
        chunked => [[index => 5, chunked => 7], [index => 6, chunked => 1]],
        pieces => [[index => 5, pace => [50, 0.002]], [index => 6, pace => [50, 0.002]]],
        closed => [[index => 5, end => 'close'], [index => 6, end => 'close']],
        huge => [[index => '18446744073709551615'], [index => 6]],
        negative => [[index => -1], [index => -1]],
    );
    my $reply = sub {
        my ($step, @servers) = @_;
        for my $name (keys %odd) {
            my $body = join ',', map { qq({"Key":"$name/$_","Value":null}) } @servers;
            $fake->reply(path => "/v1/kv/$name/", body => "[$body]", @{ $odd{$name}[$step] });
        }
    };
    $reply->(0, $first);
    my $nginx = $t->another_nginx(conf('%%PORT_0%%', join '', map {
        "upstream $_ {\nupsync " . $fake->address . "/v1/kv/$_/ upsync_type=consul upsync_interval=100ms;\n}\n"
    } sort keys %odd));
    $nginx->run;
    list_is($t->port(0), $_, [$first], "$_: synced") for sort keys %odd;
    my $since = time;
    $reply->(1, $first, $second);
    list_is($t->port(0), $_, [$second, $first], "$_: synced again") for sort keys %odd;

    sleep 0.1 while time - $since < 1;
    my %indexes;
    for my $request ($fake->requests) {
        my ($name, $index) = $request->{uri} =~ m{^/v1/kv/(\w+)/\?recurse(?:&index=(-?\d+)&wait=\d+s)?$};
        push @{ $indexes{$name} }, $index // '' unless $indexes{$name} && $indexes{$name}[-1] eq ($index // '');
    }
    my %expected = (zero => [''], none => [''], negative => [''], backwards => ['', 100, '', 50], case => ['', 7, 8],
        map({ ($_ => ['', 5, 6]) } qw(headers chunked pieces closed)), huge => ['', '18446744073709551615', '', 6]);
    is_deeply(\%indexes, \%expected, 'each index was that of the answer before');
    for my $name ('zero', 'none', 'negative', 'case') {
        my @asked = grep { $_->{uri} =~ m{^/v1/kv/$name/} && $_->{time} < $since + 1 } $fake->requests($since);
        cmp_ok(scalar @asked, '<=', 13, "$name: asked once an interval");
    }
    unlike($nginx->log, qr/\[error\]/, 'none of it is a fault');
    $nginx->stop;
};

subtest 'a real Consul' => sub {
    my $consul = $t->consul;
    my $put = sub { $consul->kv_put("upstreams/app/$_", '') for @_ };
    my $mark;
    my $told = sub {
        my ($text, $name) = @_;
        my $line = qr/upstream "app": consul \S+ \Q$text\E$/m;
        $t->log_like($line, $name, $mark);
        is(scalar(() = $t->log($mark) =~ /$line/g), 1, 'once');
    };
    $put->($first);
    # For a name that does not resolve, see below.
    $consul->kv_put("upstreams/names/$_", '') for $second, 'no-such-host.invalid:80';
    $t->write_file_expand('nginx.conf', conf('%%PORT_0%%', <<'EOF'));
    upstream app {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=100ms upsync_timeout=2s;
    }
    upstream long {
        upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul upsync_interval=100ms;
    }
    upstream names {
        upsync %%CONSUL%%/v1/kv/upstreams/names/ upsync_type=consul upsync_interval=100ms;
    }
EOF
    $t->run;
    my $start = time;
    list_is($t->port(0), 'names', [$second], 'a name that does not resolve hides no other server');
    my $unknown = qr/upstream "names": host name "no-such-host\.invalid" does not resolve: .*, left out$/m;
    $t->log_like($unknown, 'and is told');
    list_is($t->port(0), $_, [$first], "$_ is synced") for qw(app long);
    cmp_ok(ticks($t, 1.5), '<=', 3, 'no CPU time while nothing happens');

    $mark = $t->log_mark;
    $consul->pause;
    $told->('timed out, keeping the last list (1 server), retrying', 'slow');
    list_is($t->port(0), $_, [$first], "$_: the list is kept") for qw(app long);
    is(served($t->port(0), 'app'), $first, 'and serves');
    $consul->resume;
    $put->($second);
    list_is($t->port(0), $_, [$second, $first], "$_: and goes on", 10) for qw(app long);
    $told->('answers again', 'told');

    $mark = $t->log_mark;
    $consul->stop;
    $told->('connection refused, keeping the last list (2 servers), retrying', 'stopped');
    list_is($t->port(0), $_, [$second, $first], "$_: the list is kept") for qw(app long);
    cmp_ok(ticks($t, 1.5), '<=', 3, 'no CPU time while Consul is away');

    $mark = $t->log_mark;
    $consul->run;
    wait_until { 3 == (() = $t->log($mark) =~ /no servers under \S+, keeping/g) } 12;
    $told->('no servers under /v1/kv/upstreams/app/, keeping the last list (2 servers)', 'restarted empty');
    list_is($t->port(0), $_, [$second, $first], "$_: the list is kept") for qw(app long);
    $put->($first);
    list_is($t->port(0), $_, [$first], "$_: synced again", 10) for qw(app long);
    $put->($second);
    list_is($t->port(0), $_, [$second, $first], "$_: and again", 10) for qw(app long);

    # Names are asked for every 5 s.
    sleep 0.1 while time - $start < 6;
    list_is($t->port(0), 'names', [$second], 'the list with the name is kept');
    is(scalar(() = $t->log =~ /$unknown/g), 1, 'which was told but once');
    $t->stop;
};

subtest 'a start without Consul' => sub {
    my $away = '127.0.0.1:' . $t->free_port;
    my $nginx = $t->another_nginx(conf('%%PORT_0%%', <<"EOF"));
    upstream dumped {
        upsync $away/v1/kv/app/ upsync_type=consul;
        upsync_dump_path dumped.conf;
        server $second max_fails=2;
    }
    upstream configured {
        upsync $away/v1/kv/app/ upsync_type=consul;
        upsync_dump_path not-there.conf;
        server $second max_fails=2;
    }
    upstream bare {
        upsync $away/v1/kv/app/ upsync_type=consul;
    }
EOF
    $t->write_file("$nginx->{name}/dumped.conf", "server $first weight=1 max_fails=2 fail_timeout=10s;\n");
    $nginx->run;
    list_is($t->port(0), 'dumped', [$first], 'the list of the dump file');
    is(served($t->port(0), 'dumped'), $first, 'serves');
    list_is($t->port(0), 'configured', [$second], 'without one the server lines');
    is(served($t->port(0), 'configured'), $second, 'serve');
    list_is($t->port(0), 'bare', [], 'without either nothing');
    is(http_get($t->port(0), '/to/bare')->{status}, 502, 'serves');
    $nginx->stop;
};

subtest 'strong_dependency=on' => sub {
    my $fake = $t->fake_consul;
    my $strong = conf('%%PORT_0%%', <<"EOF");
    upstream app {
        upsync %%CONSUL%%/v1/kv/app/ upsync_type=consul upsync_interval=100ms strong_dependency=on;
        server $second;
    }
EOF
    my $nginx = $t->another_nginx($strong);
    my $fails = sub {
        my ($what, $cause) = @_;
        my $mark = $nginx->log_mark;
        my $start = time;
        $nginx->expect_log(qr/strong_dependency/);
        is($nginx->start->exited(15), 1, "$what: nginx does not start");
        like($nginx->log($mark), qr/\[emerg\] \S+ upsync: upstream "app": \Q$cause\E, and "upsync" has strong_dependency=on$/m,
            'and says why');
        return time - $start;
    };
    $fails->('no key', 'no servers under /v1/kv/app/');
    $fake->reply(status => 500, body => 'No cluster leader');
    $fails->('no leader', 'answered 500 "No cluster leader"');
    $fake->stop;
    cmp_ok($fails->('no Consul', 'connection refused'), '<', 5, 'at once');
    my ($status, $output) = $t->nginx_t($strong);
    is($status, 0, 'nginx -t needs no Consul') or diag($output);

    # Slow enough that a request would come first.
    $fake->reply_kv(5, { "app/$first" => undef }, delay => 0.5);
    $fake->run;
    $nginx->run;
    is(served($t->port(0), 'app'), $first, 'the first request finds the list');
    $fake->reply_kv(6, { "app/$first" => undef, "app/$second" => undef });
    list_is($t->port(0), 'app', [$second, $first], 'which is followed');

    $fake->stop;
    is(scalar($nginx->kill_worker($_)), 1, 'a worker is killed without Consul, and there is another') for $nginx->workers;
    list_is($t->port(0), 'app', [$second, $first], 'the list is there');
    is(served($t->port(0), 'app') eq $first ? $second : $first, served($t->port(0), 'app'), 'and serves');
    ok($nginx->reload, 'a reload without Consul');
    list_is($t->port(0), 'app', [$second, $first], 'the list is there');
    $fake->reply_kv(7, { "app/$second" => undef });
    $fake->run;
    list_is($t->port(0), 'app', [$second], 'Consul is back', 10);
    $nginx->stop;
};

$t->done;
