#!/usr/bin/perl

# What a user of nginx-upsync-module has: the configuration and the commands of an article about
# it (https://throwx.cn/2020/06/13/nginx-smooth-release), with other ports and folders, and
# without the health checks, which are another module's.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my $backends = $t->backends(2);
my ($first, $second) = $backends->addresses;

sub adapted {
    my $text = shift;
    $text =~ s{/data/nginx}{$t->testdir}ge;
    $text =~ s{192\.168\.56\.200:8510}{$consul->address}ge;
    $text =~ s{http://192\.168\.56\.200\b(?!:)}{'http://127.0.0.1:' . $t->port(0)}ge;
    $text =~ s{listen       80;}{'listen 127.0.0.1:' . $t->port(0) . ';'}e;
    $text =~ s{127\.0\.0\.1:9000}{$first}g;
    $text =~ s{127\.0\.0\.1:9001}{$second}g;
    return $t->expand($text);
}

sub shell { my $command = adapted("@_"); return scalar `$command` }

sub list_is {
    my ($text, $name) = @_;
    my $expected = adapted($text);
    my $list;
    wait_until { ($list = shell('curl -s http://192.168.56.200/upstream_list?app')) eq $expected } 5;
    return is($list, $expected, $name);
}

sub answers { return map { shell('curl -s http://192.168.56.200') } 1 .. 10 }

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
}
EOF
$t->run;

subtest 'before Consul has a key, the included file serves' => sub {
    list_is(<<'EOF', 'list');
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9000 weight=1 max_fails=3 fail_timeout=10s;
        server 127.0.0.1:9001 weight=1 max_fails=3 fail_timeout=10s;
EOF
    is(join('', answers()), adapted("hello world by 127.0.0.1:9000\nhello world by 127.0.0.1:9001\n") x 5, 'in turn');
};

subtest 'the servers come from Consul' => sub {
    like(shell(q[curl -s -X PUT -d '{"weight":1, "max_fails":2, "fail_timeout":10}'],
        'http://192.168.56.200:8510/v1/kv/upstreams/app/127.0.0.1:9000'), qr/^true$/, 'put');
    list_is(<<'EOF', 'the first');
Upstream name: app; Backend server count: 1
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
    like(shell(q[curl -s -X PUT -d '{"weight":1, "max_fails":2, "fail_timeout":10}'],
        'http://192.168.56.200:8510/v1/kv/upstreams/app/127.0.0.1:9001'), qr/^true$/, 'put');
    list_is(<<'EOF', 'and the second');
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
    my $dumped = adapted(<<'EOF');
server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
    wait_until { $t->read_file('app.conf') eq $dumped } 5;
    is($t->read_file('app.conf'), $dumped, 'in the dump file too');
};

subtest 'a reload changes nothing' => sub {
    ok($t->reload, 'reload');
    list_is(<<'EOF', 'list');
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
};

subtest 'one is taken down' => sub {
    like(shell(q[curl -s -X PUT -d '{"weight":1, "max_fails":2, "fail_timeout":10, "down":1}'],
        'http://192.168.56.200:8510/v1/kv/upstreams/app/127.0.0.1:9000'), qr/^true$/, 'put');
    list_is(<<'EOF', 'it is shown as down');
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s down;
EOF
    is(join('', answers()), adapted("hello world by 127.0.0.1:9001\n") x 10, 'and gets no request');
};

subtest 'it comes back' => sub {
    like(shell(q[curl -s -X PUT -d '{"weight":1, "max_fails":2, "fail_timeout":10, "down":0}'],
        'http://192.168.56.200:8510/v1/kv/upstreams/app/127.0.0.1:9000'), qr/^true$/, 'put');
    list_is(<<'EOF', 'list');
Upstream name: app; Backend server count: 2
        server 127.0.0.1:9001 weight=1 max_fails=2 fail_timeout=10s;
        server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;
EOF
    my @answers = answers();
    my @turns = map { adapted("hello world by 127.0.0.1:$_\n") } 9000, 9001;
    @turns = reverse @turns if $answers[0] eq $turns[1];
    is(join('', @answers), join('', (@turns) x 5), 'the two alternate');
};

$t->done;
