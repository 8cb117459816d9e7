#!/usr/bin/perl

# What a user of nginx-upsync-module together with nginx_upstream_check_module has: the configuration
# and the commands of an article about it (https://throwx.cn/2020/06/13/nginx-smooth-release), word for
# word but for ports and folders. One of two servers is killed, and started again.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::App;

# As in the configuration below, in seconds.
my ($interval, $rise, $fall, $timeout) = (1, 2, 2, 3);
# For a machine that does much else; what it took is told.
my $slack = 10;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my %app = map { $_ => Test::Upsync::App->new($t)->run } 9000, 9001;

sub adapted {
    my $text = shift;
    $text =~ s{/data/nginx}{$t->testdir}ge;
    $text =~ s{192\.168\.56\.200:8510}{$consul->address}ge;
    $text =~ s{http://192\.168\.56\.200\b(?!:)}{'http://127.0.0.1:' . $t->port(0)}ge;
    $text =~ s{listen       80;}{'listen       127.0.0.1:' . $t->port(0) . ';'}e;
    $text =~ s{127\.0\.0\.1:(900[01])}{$app{$1}->address}ge;
    return $t->expand($text);
}

sub shell { my $command = adapted("@_"); return scalar `$command` }

sub put {
    my ($port, $value) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return like(shell("curl -s -X PUT -d '$value' http://192.168.56.200:8510/v1/kv/upstreams/app/127.0.0.1:$port"),
        qr/^true$/, "put $port: $value");
}

sub list_is {
    my ($text, $name) = @_;
    my $expected = adapted($text);
    my $list;
    wait_until { ($list = shell('curl -s http://192.168.56.200/upstream_list?app')) eq $expected } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($list, $expected, $name);
}

# The ports of the article that answered so many requests.
sub answers {
    my $number = shift;
    my %port = map { adapted("hello world by 127.0.0.1:$_\n") => $_ } keys %app;
    my %count;
    $count{ $port{$_} // $_ }++ for map { shell('curl -s http://192.168.56.200') } 1 .. $number;
    return \%count;
}

# Of check_status: address => up or down.
sub verdicts {
    my %is = map { (split /,/)[ 2, 3 ] } split /\n/, shell(q[curl -s 'http://192.168.56.200/upstream_status?format=csv']);
    return \%is;
}

sub verdict { my $port = shift; return verdicts()->{ $app{$port}->address } // 'not there' }

# In the error log: attempts to send a request to a server that does not answer. Checks are none.
sub attempts {
    my ($port, $mark) = @_;
    my $address = $app{$port}->address;
    return scalar(() = $t->log($mark) =~ m{connect\(\) failed .* upstream: "http://\Q$address\E/}g);
}

$t->write_file('mime.types', "types { text/html html; }\n");
$t->write_file('app.conf', adapted(<<'EOF'));
server 127.0.0.1:9000 weight=1 fail_timeout=10 max_fails=3;
server 127.0.0.1:9001 weight=1 fail_timeout=10 max_fails=3;
EOF
$t->write_file('nginx.conf', adapted(<<'EOF'));
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
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
       # 下面三个配置是健康检查的配置
       check interval=1000 rise=2 fall=2 timeout=3000 type=http default_down=false;
       check_http_send "HEAD / HTTP/1.0\r\n\r\n";
       check_http_expect_alive http_2xx http_3xx;
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
        # 健康检查 - 查看负载均衡的状态
        location /upstream_status {
            check_status;
            access_log off;
        }
    }
}
EOF
$t->run;

my $both = <<'EOF';
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
my $value = '{"weight":1, "max_fails":2, "fail_timeout":10}';

subtest 'two servers from Consul' => sub {
    is_deeply(answers(4), { 9000 => 2, 9001 => 2 }, 'the included file serves before');
    is_deeply(verdicts(), { map { $_->address => 'up' } values %app }, 'and is checked');
    put(9000, $value);
    list_is(<<'EOF', 'the first');
Upstream name: app; Backend server count: 1
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
    is_deeply(verdicts(), { $app{9000}->address => 'up' }, 'is the only one that check_status has');
    put(9001, $value);
    list_is($both, 'the second');
    ok($t->reload, 'nginx is reloaded');
    list_is($both, 'the list is the same');
    is_deeply(answers(10), { 9000 => 5, 9001 => 5 }, 'both serve');
    is_deeply(verdicts(), { map { $_->address => 'up' } values %app }, 'both are up');
    my $since = time;
    wait_until { !grep { $_->requests('HEAD', $since) < 2 } values %app } 10, 'both are asked';
};

subtest 'one is killed' => sub {
    my $mark = $t->log_mark;
    my $killed = time;
    $app{9000}->kill;
    wait_until { verdict(9000) eq 'down' } $fall * $interval + $timeout + $slack, 'check_status shows it down';
    note sprintf '%.1f s after its death; fall * interval + timeout is %d s', time - $killed, $fall * $interval + $timeout;

    is_deeply(answers(20), { 9001 => 20 }, 'then the other serves');
    is(attempts(9000, $mark), 0, 'and no request was tried with it');
    my $html = shell('curl -si http://192.168.56.200/upstream_status');
    like($html, qr{^Content-Type: text/html}mi, 'the page of check_status');
    like($html, qr{<title>Nginx http upstream check status</title>}, 'is the known one');
    like($html, qr{Check upstream server number: 2, generation: \d+}, 'with two servers');
    like($html, adapted_regex(qq{<tr bgcolor="#FF0000">\\s*<td>\\d+</td>\\s*<td>app</td>\\s*<td>127.0.0.1:9000</td>\\s*}
        . "<td>down</td>\\s*<td>0</td>\\s*<td>\\d+</td>\\s*<td>http</td>\\s*<td>0</td>"), 'the dead one red');
    like($html, adapted_regex("<tr>\\s*<td>\\d+</td>\\s*<td>app</td>\\s*<td>127.0.0.1:9001</td>\\s*<td>up</td>"), 'the other not');
    like(shell(q[curl -s 'http://192.168.56.200/upstream_status?format=csv']),
        adapted_regex('^\d+,app,127.0.0.1:9000,down,0,\d+,http,0$'), 'as csv');
    my $servers = json(shell(q[curl -s 'http://192.168.56.200/upstream_status?format=json']))->{servers};
    is($servers->{total}, 2, 'as JSON: two');
    my ($dead) = grep { $_->{name} eq $app{9000}->address } @{ $servers->{server} };
    is_deeply([ @$dead{qw(upstream status rise type port)} ], [ 'app', 'down', 0, 'http', 0 ], 'it is down');
    cmp_ok($dead->{fall}, '>=', $fall, "after $dead->{fall} failed checks");

    is($consul->kv_get('upstreams/app/' . $app{9000}->address), $value, 'Consul still has it as it was');
    list_is($both, 'and upstream_show without "down"');
    unlike($t->read_file('app.conf'), qr/down/, 'as has the dump file');
    told('9000 is down: connect refused', $mark);
};

subtest 'it is started again' => sub {
    my $mark = $t->log_mark;
    $app{9000}->run;
    my $started = time;
    wait_until { verdict(9000) eq 'up' } $rise * $interval + $timeout + $slack, 'check_status shows it up';
    note sprintf '%.1f s after its start; rise * interval is %d s', time - $started, $rise * $interval;
    cmp_ok(scalar $app{9000}->requests('HEAD', $started), '>=', $rise, 'after as many good checks as it takes');
    is_deeply(answers(10), { 9000 => 5, 9001 => 5 }, 'both serve');
    told('9000 is up', $mark);
};

subtest 'one is taken down in Consul' => sub {
    my $mark = $t->log_mark;
    put(9000, '{"weight":1, "max_fails":2, "fail_timeout":10, "down":1}');
    list_is(<<'EOF', 'it is shown as down');
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s down;
EOF
    my $since = time;
    is_deeply(answers(20), { 9001 => 20 }, 'and gets no request');
    is(scalar $app{9000}->requests('GET', $since), 0, 'not one');
    wait_until { $app{9000}->requests('HEAD', $since) } 10, 'but is checked';
    is(verdict(9000), 'up', 'and found up: the one does not hide the other');
    put(9000, '{"weight":1, "max_fails":2, "fail_timeout":10, "down":0}');
    list_is($both, 'it comes back');
    is_deeply(answers(10), { 9000 => 5, 9001 => 5 }, 'and serves');
    unlike($t->log($mark), qr/: server \S+ is (?:up|down)\b/, 'of which the checks had nothing to tell');
};

$t->done;

sub adapted_regex { my $text = adapted(shift); return qr/$text/m }

# Once.
sub told {
    my ($what, $mark) = @_;
    my $line = adapted("upsync: upstream \"app\": server 127.0.0.1:$what");
    my @lines;
    wait_until { @lines = $t->log($mark) =~ /\[(\w+)\].* \Q$line\E$/mg } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is("@lines", $what =~ /down/ ? 'warn' : 'notice', "the log has once: $line");
}
