#!/usr/bin/perl

# The harness itself: stock nginx without our module, Consul, fake Consul, backends, load.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new(module => 0);
my $consul = $t->consul;
my $fake = $t->fake_consul;
my $socket = 'unix:' . $t->testdir . '/backend.sock';
my $backends = $t->backends(2, listen => [$socket]);
my $single = $t->backends(1);

$t->write_file_expand('nginx.conf', <<'EOF');
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app {
        server %%BACKEND_0%%;
        server %%BACKEND_1%%;
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location / { proxy_pass http://app; }
        location /single { proxy_pass http://%%BACKEND_3%%; proxy_connect_timeout 1s; }
    }
}
EOF
$t->run;

subtest 'requests' => sub {
    my ($first, $second) = $backends->addresses;
    like(http_get($t->port(0), '/')->{body}, qr/^hello world by 127\.0\.0\.1:\d+\n$/, 'proxied');
    is(http_get($second, '/ping')->{body}, "pong by $second\n", 'ping');
    is(http_get($socket, '/')->{body}, "hello world by $socket\n", 'unix socket');

    my $connection = http_connect($first);
    http_get($first, '/kept', connection => $connection) for 1 .. 3;
    # nginx logs a request when its answer has been sent.
    my @kept;
    wait_until { 3 == (@kept = grep { $_->{uri} eq '/kept' } $backends->requests) } 5;
    is(@kept, 3, 'three requests logged');
    is(keys %{ { map { $_->{connection} => 1 } @kept } }, 1, 'on one connection');

    is(http('HEAD', $first, '/')->{body}, '', 'HEAD');
    is(http('PUT', $first, '/', body => 'x' x 100000)->{status}, 200, 'PUT');
    my $refused = http_get($t->free_port, '/');
    is($refused->{status}, 0, 'refused');
    like($refused->{error}, qr/^connect: /, 'and why');
    is($backends->counts->{$socket}, 1, 'counted by address');
};

subtest 'a single backend stops and comes back' => sub {
    is(http_get($t->port(0), '/single')->{status}, 200, 'up');
    ok($single->stop, 'stopped');
    is(http_get($t->port(0), '/single')->{status}, 502, 'down');
    $single->run;
    is(http_get($t->port(0), '/single')->{status}, 200, 'up again');
};

subtest 'workers' => sub {
    my @before = $t->workers;
    is(@before, 2, 'two');
    my @new = $t->kill_worker($before[1]);
    is(@new, 1, 'a killed one is replaced');
    ok(!grep({ $_ == $before[1] } $t->workers), 'and gone');

    ok($t->reload, 'reload');
    wait_until { !$t->old_workers } 5, 'old workers exit';
    is(@{[$t->workers]}, 2, 'two again');

    my $conf = $t->read_file('nginx.conf');
    $t->write_file('nginx.conf', "nonsense;\n$conf");
    my @serving = sort $t->workers;
    ok($t->reload(fails => 1), 'a failed reload');
    is_deeply([sort $t->workers], \@serving, 'keeps the workers');
    $t->log_like(qr/unknown directive "nonsense"/, 'and says why');
    $t->write_file('nginx.conf', $conf);
};

subtest 'nginx -t' => sub {
    my ($status, $output) = $t->nginx_t("%%TEST_GLOBALS%%\nevents {}\n");
    is($status, 0, 'good') or diag($output);
    ($status, $output) = $t->nginx_t("events {}\nhttp { nonsense; }\n");
    is($status, 1, 'bad');
    like($output, qr{\[emerg\] unknown directive "nonsense" in \S+/nginx\.conf:2}, 'says where');
};

subtest 'an nginx that does not start' => sub {
    my $other = $t->another_nginx("events {}\nnonsense;\n");
    is($other->start->exited, 1, 'exit status');
    like($other->log, qr/nonsense/, 'its own log');
    $other->expect_log(qr/unknown directive/);
};

subtest 'Consul' => sub {
    $consul->kv_put('upstreams/app/127.0.0.1:9000', { weight => 2 });
    is($consul->kv_get('upstreams/app/127.0.0.1:9000'), '{"weight":2}', 'key put');
    $consul->kv_delete('upstreams/app/127.0.0.1:9000');
    is($consul->kv_get('upstreams/app/127.0.0.1:9000'), undef, 'key deleted');

    $consul->kv_put_many({ map { ("many/$_" => $_) } 1 .. 200 });
    is(@{ json($consul->get('/v1/kv/many/?keys')->{body}) }, 200, 'many keys');

    $consul->register_service(Name => 'web', ID => 'web-1', Address => '127.0.0.1', Port => 9000,
        Check => { CheckID => 'web-1', TTL => '60s', Status => 'passing' });
    is(@{ json($consul->get('/v1/health/service/web?passing')->{body}) }, 1, 'service');
    $consul->set_check('web-1', 'fail');
    wait_until { !@{ json($consul->get('/v1/health/service/web?passing')->{body}) } } 5, 'check fails';
    $consul->deregister_service('web-1');
    wait_until { $consul->get('/v1/catalog/service/web')->{body} =~ /^\[\]\s*$/ } 5, 'service gone' or diag $consul->get('/v1/catalog/service/web')->{raw};

    $consul->pause;
    is(http_get($consul->port, '/v1/kv/many/1', timeout => 0.2)->{error}, 'timed out', 'paused');
    $consul->resume;
    wait_until { $consul->kv_get('many/1') } 5, 'resumed';

    ok($consul->stop, 'stopped');
    is(http_get($consul->port, '/')->{status}, 0, 'down');
    $consul->restart;
    is($consul->kv_get('many/1'), undef, 'up and empty');
};

subtest 'Consul that keeps its data' => sub {
    my $keeper = $t->consul(keep_data => 1);
    $keeper->kv_put('a', 'b');
    $keeper->restart;
    is($keeper->kv_get('a'), 'b', 'kept');
    $keeper->restart(wipe => 1);
    is($keeper->kv_get('a'), undef, 'wiped');
};

subtest 'fake Consul' => sub {
    my $get = sub { http_get($fake->port, $_[0] // '/v1/kv/app/', timeout => $_[1] // 5) };
    is($get->()->{status}, 404, 'nothing there');

    $fake->reply_kv(7, { 'app/127.0.0.1:1' => { weight => 1 } });
    my $answer = $get->();
    is(json($answer->{body})->[0]{Key}, 'app/127.0.0.1:1', 'keys');
    is($answer->{headers}{'x-consul-index'}, 7, 'index');

    my $start = time;
    is($get->('/v1/kv/app/?index=7&wait=100ms')->{status}, 200, 'blocking query');
    cmp_ok(time - $start, '>', 0.1, 'waits');
    my $connection = http_connect($fake->port);
    $connection->send("GET /v1/kv/app/?index=7 HTTP/1.1\r\n\r\n");
    sleep 0.05;
    $fake->reply_kv(8, {});
    is($connection->receive('GET')->{headers}{'x-consul-index'}, 8, 'until the reply changes');

    $fake->reply(body => 'x' x 10000, chunked => 999, headers => [map { ("X-$_" => $_) } 1 .. 60]);
    $answer = $get->();
    is(length $answer->{body}, 10000, 'chunked');
    is($answer->{headers}{'x-60'}, 60, 'many headers');

    $fake->reply(body => 'x' x 100, truncate => 80);
    is($get->()->{error}, 'closed', 'truncated');
    $fake->reply(raw => "garbage\r\n\r\n");
    is($get->()->{status}, 0, 'garbage');
    $fake->reply(truncate => 0, end => 'reset');
    like($get->()->{error}, qr/reset by peer/, 'reset');
    $fake->reply(end => 'hang', raw => "HTTP/1.1 200 OK\r\n");
    is($get->(undef, 0.1)->{error}, 'timed out', 'hangs');
    $fake->reply(body => 'x' x 10, pace => [20, 0.02]);
    $start = time;
    is($get->()->{body}, 'x' x 10, 'slow');
    cmp_ok(time - $start, '>', 0.03, 'piece by piece');
    $fake->reply(status => 500, path => '/v1/catalog/');
    is($get->('/v1/catalog/service/a')->{status}, 500, 'by path');

    my @requests = $fake->requests($start);
    is(@requests, 2, 'requests logged');
    is($requests[1]{uri}, '/v1/catalog/service/a', 'with their uri');
    ok($fake->stop, 'stopped');
    like($get->()->{error}, qr/^connect: /, 'refused');
    $fake->run;
    is($get->('/v1/catalog/')->{status}, 500, 'back with the same reply');
};

subtest 'load' => sub {
    my $result = wrk('http://127.0.0.1:' . $t->port(0) . '/', seconds => 1, connections => 4);
    cmp_ok($result->{requests}, '>', 10, 'requests');
    is($result->{non_2xx} + $result->{socket_errors}, 0, 'no errors');
    my $background = wrk('http://127.0.0.1:' . $t->port(0) . '/single', seconds => 1, background => 1);
    $single->stop;
    cmp_ok($background->()->{non_2xx}, '>', 0, 'errors counted');
};

$t->done;
