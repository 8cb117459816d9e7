#!/usr/bin/perl

# upstream_show: the lists as text, as nginx-upsync-module has it.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $fake = $t->fake_consul;
$fake->reply_kv(5, { 'app/127.0.0.1:8088' => { weight => 10, max_fails => 3 } }, path => '/v1/kv/app/');

$t->write_file_expand('nginx.conf', <<'EOF');
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    default_type text/html;
    upstream App {
        upsync %%CONSUL%%/v1/kv/app/ upsync_type=consul upsync_interval=100ms;
    }
    upstream none {
        upsync %%CONSUL%%/v1/kv/none/ upsync_type=consul;
    }
    upstream static {
        ip_hash;
        server 127.0.0.1:8091 down;
        server 127.0.0.1:8090 weight=2 max_fails=5 fail_timeout=1m;
    }
    upstream full {
        server 127.0.0.1:8092 max_conns=3;
        server [::1]:8093 backup;
        server unix:/nowhere.sock;
        keepalive 1;
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location /upstream_list { upstream_show; }
        location / { proxy_pass http://App; }
    }
}
EOF
$t->run;

my $app = <<'EOF';
Upstream name: App; Backend server count: 1
        server 127.0.0.1:8088 weight=10 max_fails=3 fail_timeout=10s;
EOF
my $none = "Upstream name: none; Backend server count: 0\n";
my $static = <<'EOF';
Upstream name: static; Backend server count: 2
        server 127.0.0.1:8091 weight=1 max_fails=1 fail_timeout=10s down;
        server 127.0.0.1:8090 weight=2 max_fails=5 fail_timeout=60s;
EOF
my $full = <<'EOF';
Upstream name: full; Backend server count: 3
        server 127.0.0.1:8092 weight=1 max_fails=1 fail_timeout=10s max_conns=3;
        server [::1]:8093 weight=1 max_fails=1 fail_timeout=10s backup;
        server unix:/nowhere.sock weight=1 max_fails=1 fail_timeout=10s;
EOF
my $all = "$app\n$none\n$static\n$full\n";
my $unknown = 'The upstream you requested does not exist. Please double-check the name';

sub show { return http_get($t->port(0), "/upstream_list$_[0]") }

wait_until { show('?app')->{body} eq $app } 5, 'synced';

subtest 'texts' => sub {
    my @table = (
        ['', $all], ['?', $all], ['/any/path', $all],
        ['?App', $app], ['?app', $app], ['?APP', $app],
        ['?none', $none], ['?static', $static], ['?FULL', $full],
        (map { ["?$_", $unknown] } 'unknown', 'ap', 'app2', 'app&x=1', 'name=app', '%61pp', 'app/'),
    );
    for (@table) {
        my ($query, $text) = @$_;
        my $answer = show($query);
        is($answer->{status}, 200, "/upstream_list$query");
        is($answer->{body}, $text, 'text');
        is($answer->{headers}{'content-type'}, 'text/plain', 'type');
        is($answer->{headers}{'content-length'}, length $text, 'length');
    }
};

subtest 'methods' => sub {
    my $connection = http_connect($t->port(0));
    my @on = (connection => $connection);
    my $head = http('HEAD', $t->port(0), '/upstream_list?app', @on);
    is($head->{status}, 200, 'HEAD');
    is($head->{headers}{'content-length'}, length $app, 'length as with GET');
    is(http_get($t->port(0), '/upstream_list?app', @on)->{body}, $app, 'and no body: the next answer follows');
    is(http_get($t->port(0), '/upstream_list?app', body => 'x' x 100, @on)->{body}, $app, 'GET with a body');
    is(http_get($t->port(0), '/upstream_list?app', @on)->{body}, $app, 'which is read away');
    is(http($_, $t->port(0), '/upstream_list?app', body => 'server 127.0.0.1:1;')->{status}, 405, $_)
        for qw(POST PUT DELETE PATCH OPTIONS);
    is(show('?app')->{body}, $app, 'nothing changed');
};

subtest 'a list that is larger than a buffer' => sub {
    $fake->reply_kv(6, { map { ("app/127.0.0.1:$_" => undef) } 1 .. 1000 }, path => '/v1/kv/app/');
    wait_until { show('?app')->{body} =~ /count: 1000\n/ } 7;
    my $answer = show('?app');
    is(scalar(() = $answer->{body} =~ /^ {8}server 127\.0\.0\.1:\d+ weight=1 max_fails=2 fail_timeout=10s;$/mg), 1000,
        'whole');
    is($answer->{headers}{'content-length'}, length $answer->{body}, 'length');
};

subtest 'no upstream' => sub {
    my $other = $t->another_nginx(<<'EOF');
%%TEST_GLOBALS%%
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { upstream_show; }
    }
}
EOF
    $other->run;
    is(http_get($t->port(1), '/')->{body}, 'No upstreams defined', 'all');
    is(http_get($t->port(1), '/?app')->{body}, $unknown, 'one');
    $other->stop;
};

# Names made at run time have their place in nginx's own array of upstreams as long as somebody
# has one, so they are shown, asked for and removed by turns.
subtest 'lists that are posted' => sub {
    my ($backend) = $t->backends(1)->addresses;
    my $other = $t->another_nginx(<<'EOF');
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream static { server 127.0.0.1:8090; }
    server {
        listen 127.0.0.1:%%PORT_2%% reuseport;
        location /upstream_list { upstream_show; }
        location /api/ { dyups_interface; }
        location / { proxy_pass http://$http_host; }
    }
}
EOF
    $other->run;
    my $text = sub {
        return "Upstream name: $_[0]; Backend server count: 1\n"
            . "        server $_[1] weight=1 max_fails=1 fail_timeout=10s;\n";
    };
    my $static = $text->('static', '127.0.0.1:8090');
    my @names = ('a', 'b:80');
    my $list = sub { http_get($t->port(2), '/upstream_list' . ($_[0] // ''))->{body} };
    for my $round (1 .. 20) {
        for (@names) {
            my $answer = http('POST', $t->port(2), "/api/upstream/$_", body => "server $backend;");
            is($answer->{status}, 200, "$_ posted");
        }
        my $all = "$static\n" . join '', map { $text->($_, $backend) . "\n" } @names;
        for (1 .. 5) {
            is($list->(), $all, 'all');
            for (@names) {
                is($list->("?\U$_"), $text->($_, $backend), "$_ shown");
                is(http_get($t->port(2), '/', headers => { Host => $_ })->{status}, 200, "$_ served");
            }
        }
        http('DELETE', $t->port(2), "/api/upstream/$_") for @names;
        is($list->(), "$static\n", 'all again');
        is($list->('?a'), $unknown, 'unknown');
    }
    http('POST', $t->port(2), '/api/upstream/static', body => "server $backend;");
    is($list->(), $text->('static', $backend) . "\n", 'one of nginx.conf');
    $other->stop;
};

$t->done;
