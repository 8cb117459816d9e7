#!/usr/bin/perl

# Lists that grow and shrink under load, with a server that refuses every request in them, through
# fastcgi_pass, uwsgi_pass, scgi_pass and grpc_pass to real servers of these protocols.

use strict;
use warnings;

use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Picks;

my $seconds = $ENV{TEST_SECONDS} // 2;

my $t = Test::Upsync->new;
my @sizes = (1, 2, 3, 5, 8, 5, 3, 2, 1);
my $app = 'run.example';
my %protocols = (
    fastcgi => {
        server => 'php-fpm',
        binary => (sort glob '/usr/sbin/php-fpm*')[-1],
        start => \&php_fpm,
        pass => "fastcgi_keep_conn on;\n" . params('fastcgi',
            SCRIPT_FILENAME => $t->testdir . '/app.php', QUERY_STRING => '$query_string',
            REQUEST_METHOD => '$request_method', CONTENT_TYPE => '$content_type',
            CONTENT_LENGTH => '$content_length'),
        load => \&http_load,
        body => \&body_arrives,
    },
    uwsgi => {
        server => 'uwsgi with its Python plugin',
        binary => uwsgi_binary(),
        start => sub { uwsgi('socket', @_) },
        pass => params('uwsgi', cgi()),
        load => \&http_load,
        body => \&body_arrives,
    },
    scgi => {
        server => 'uwsgi with its Python plugin',
        binary => uwsgi_binary(),
        start => sub { uwsgi('scgi-socket', @_) },
        pass => params('scgi', cgi()),
        load => \&http_load,
        body => \&body_arrives,
    },
    grpc => {
        server => 'python3-grpcio',
        binary => system("/usr/bin/python3 -c 'import grpc' 2>/dev/null") == 0 && '/usr/bin/python3',
        start => \&grpc_server,
        scheme => 'grpc://',
        pass => '',
        listen => 'http2',
        load => \&grpc_load,
    },
);

protocol($_) for qw(fastcgi uwsgi scgi grpc);

$t->done;

sub params {
    my ($protocol, @params) = @_;
    my $lines = '';
    while (my ($name, $value) = splice @params, 0, 2) {
        $lines .= "${protocol}_param $name $value;\n";
    }
    return $lines;
}

sub cgi {
    return (REQUEST_METHOD => '$request_method', REQUEST_URI => '$request_uri', PATH_INFO => '$uri',
        QUERY_STRING => '$query_string', CONTENT_LENGTH => '$content_length',
        SERVER_PROTOCOL => '$server_protocol', SERVER_NAME => '$server_name', SERVER_PORT => '$server_port');
}

sub protocol {
    my $name = shift;
    my %of = %{ $protocols{$name} };
    SKIP: {
        skip "nginx has no ${name}_pass", 1 unless has_module($name);
        skip "$name: no $of{server} here", 1 unless $of{binary};
        subtest "${name}_pass" => sub { churn($name, \%of) };
    }
    return;
}

sub has_module {
    my $protocol = shift;
    my $built = `$t->{nginx}{binary} -V 2>&1`;
    return 0 if $built =~ /--without-http_${protocol}_module/;
    return $protocol ne 'grpc' || $built =~ /--with-http_v2_module/;
}

sub churn {
    my ($protocol, $of) = @_;
    my @servers = map { '127.0.0.1:' . $t->free_port } 1 .. 8;
    my $refusing = '127.0.0.1:' . $t->free_port;
    my $server = $of->{start}->($of->{binary}, @servers);
    wait_until { !grep { !connects($_) } @servers } 20, "$of->{server} listens on all ports"
        or return diag $t->read_file("$protocol.log");

    my $nginx = $t->another_nginx(conf($protocol, $of))->run;
    my $picks = Test::Upsync::Picks->new("$nginx->{dir}/picks.log");
    ok(change($picks, 0, $refusing, @servers), 'a first list');
    my $load = $of->{load}->();
    my $until = time + $seconds;
    my ($step, $good) = (0, 1);
    while ($good && ($step < @sizes || time < $until)) {
        my $size = $sizes[ $step++ % @sizes ];
        my @live = map { $servers[ ($step * 3 + $_) % @servers ] } 0 .. $size - 1;
        $good = change($picks, $step, $refusing, @live) && all_serve($picks, $refusing, @live)
            && (!$of->{body} || $of->{body}->(@live));
        ok($good, "$size servers and one that refuses: all of them get requests, by an upstream of"
            . ' nginx.conf and by a name') if !$good || $step <= @sizes;
    }
    my ($requests, $failed) = $picks->stop($load);
    cmp_ok($requests, '>', 100, "requests: $requests, lists: $step");
    is($failed, '', 'none failed');
    # The log is complete when nginx has ended.
    ok($nginx->stop, 'nginx ends');
    is(join("\n", $picks->wrong), '', 'each was answered by a server of its list');
    cmp_ok($picks->retried, '>', 10, 'refused ones were tried again: ' . $picks->retried);
    ok($server->stop, "$of->{server} ends");
    return;
}

sub connects { return !!IO::Socket::INET->new(PeerAddr => $_[0]) }

# The same list for an upstream of nginx.conf and for a name made at run time. The server that
# refuses is now first, now last, now between the others.
sub change {
    my ($picks, $step, $refusing, @live) = @_;
    my @list = @live;
    splice @list, $step % (@list + 1), 0, $refusing;
    my $body = join '', map { "server $_ max_fails=0;\n" } @list;
    return $picks->change(\@list, sub {
        !grep { http('POST', $t->port(1), "/upstream/$_", body => $body)->{status} != 200 } 'fixed', $app;
    });
}

sub all_serve {
    my ($picks, $refusing, @live) = @_;
    my %missing;
    my $all = wait_until {
        %missing = map { my $way = $_; ($way => [ missing($picks, $way, $refusing, @live) ]) } qw(fixed variable);
        !map { @$_ } values %missing;
    } 30;
    diag('no requests: ', explain \%missing) unless $all;
    return $all;
}

sub missing {
    my ($picks, $way, $refusing, @live) = @_;
    my ($served, $tried) = ($picks->served($way), $picks->tried($way));
    return ((grep { !$served->{$_} } @live), $tried->{$refusing} ? () : $refusing);
}

sub conf {
    my ($protocol, $of) = @_;
    my $pass = $protocol . '_pass ' . ($of->{scheme} // '');
    my $listen = $of->{listen} // '';
    my $format = Test::Upsync::Picks->format;
    return <<"EOT";
%%TEST_GLOBALS%%
worker_processes 2;
worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    keepalive_requests 1000000000;
    keepalive_time 1d;
    log_format picks '$format';
    dyups_upstream template;
    upstream template {
        server 127.0.0.1:1 down;
        keepalive 8;
    }
    upstream fixed {
        server 127.0.0.1:1 down;
        keepalive 8;
    }
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport $listen;
        access_log picks.log picks;
        ${protocol}_next_upstream error timeout;
        $of->{pass}
        location /fixed { ${pass}fixed; }
        location /variable {
            set \$app $app;
            ${pass}\$app;
        }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
EOT
}

# Requests with and without a body, by turns on both ways.
sub http_load {
    my $script = $t->write_file('load.lua', <<'EOT');
local number = 0
-- No more than the test can look at.
delay = function() return 1 end
local body = string.rep("x", 5000)
request = function()
    number = number + 1
    local path = number % 2 == 0 and "/fixed" or "/variable"
    if number % 4 < 2 then return wrk.format("GET", path) end
    return wrk.format("POST", path, nil, body)
end
EOT
    my $wrk = wrk('http://127.0.0.1:' . $t->port(0), connections => 8, seconds => 3600, script => $script,
        background => 1, pid => \my $pid);
    return sub {
        kill 'INT', $pid;
        my $result = $wrk->();
        my $failed = $result->{non_2xx} + $result->{socket_errors};
        return ($result->{requests}, $failed ? $result->{output} : '');
    };
}

# A body reaches the server that answers.
sub body_arrives {
    my @live = @_;
    for my $way (qw(fixed variable)) {
        my $body = 'x' x (1 + rand 100_000);
        my $answer = http('POST', $t->port(0), "/$way", body => $body);
        my ($server, $length) = split ' ', $answer->{body};
        next if grep { "$_ " . length $body eq "$server $length" } @live;
        diag "/$way: $answer->{raw}";
        return 0;
    }
    return 1;
}

sub part {
    my ($name, @command) = @_;
    my $process = Test::Upsync::Process->spawn(command => \@command, output => $t->testdir . "/$name.log");
    push @{ $t->{parts} }, $process;
    return $process;
}

# A pool for each address. A kept connection holds a process of it.
sub php_fpm {
    my ($binary, @servers) = @_;
    $t->write_file('app.php', <<'EOT');
<?php
$body = file_get_contents('php://input');
header('X-Server: ' . getenv('SERVER'));
header('Content-Type: text/plain');
echo getenv('SERVER'), ' ', strlen($body), "\n";
EOT
    my $user = $> == 0 ? "user = root\ngroup = root" : '';
    my $pools = '';
    for my $server (@servers) {
        my ($port) = $server =~ /:(\d+)$/;
        $pools .= <<"EOT";
[$port]
$user
listen = $server
listen.backlog = 511
pm = ondemand
pm.max_children = 32
pm.process_idle_timeout = 1h
env[SERVER] = $server
EOT
    }
    my $conf = $t->write_file('php-fpm.conf', <<"EOT");
[global]
daemonize = no
error_log = @{[ $t->testdir ]}/fastcgi.log
$pools
EOT
    return part('fastcgi', $binary, '-n', '-F', $> == 0 ? '-R' : (), '-y', $conf);
}

sub uwsgi_binary {
    return unless glob '/usr/lib/uwsgi/plugins/python3*_plugin.so';
    return (grep { -x } '/usr/bin/uwsgi-core')[0];
}

sub uwsgi {
    my ($socket, $binary, @servers) = @_;
    $t->write_file('app.py', <<'EOT');
import socket
import uwsgi

def application(environ, start_response):
    connection = socket.socket(fileno=uwsgi.connection_fd())
    server = "%s:%d" % connection.getsockname()
    connection.detach()
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Server", server)])
    return [("%s %d\n" % (server, len(body))).encode()]
EOT
    return part($socket eq 'socket' ? 'uwsgi' : 'scgi', $binary, '--plugin', 'python3', map({ ("--$socket", $_) } @servers),
        '--wsgi-file', $t->testdir . '/app.py', '--need-app', '--master', '--processes', 2, '--threads', 4,
        '--die-on-term', '--no-orphans', '--disable-logging');
}

sub grpc_server {
    my ($binary, @servers) = @_;
    my $script = $t->write_file('server.py', <<'EOT');
import signal
import sys
import threading
from concurrent import futures

import grpc

class Echo(grpc.GenericRpcHandler):
    def __init__(self, address):
        self.address = address

    def service(self, details):
        def tell(context):
            context.send_initial_metadata((("x-server", self.address),))

        def say(request, context):
            tell(context)
            return self.address.encode() + b" " + request

        def talk(requests, context):
            tell(context)
            for request in requests:
                yield self.address.encode() + b" " + request

        if details.method.endswith("/Talk"):
            return grpc.stream_stream_rpc_method_handler(talk)
        return grpc.unary_unary_rpc_method_handler(say)

servers = []
for address in sys.argv[1:]:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([Echo(address)])
    assert server.add_insecure_port(address)
    server.start()
    servers.append(server)
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
end.wait()
for server in servers:
    server.stop(None)
EOT
    return part('grpc', $binary, $script, @servers);
}

# Calls one after the other over several connections, and a stream on each way that stays open all
# the time.
sub grpc_load {
    my $script = $t->write_file('client.py', <<'EOT');
import collections
import queue
import signal
import sys
import threading

import grpc

end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
lock = threading.Lock()
calls = collections.Counter()
failures = []

def channel():
    return grpc.insecure_channel(sys.argv[1], options=[("grpc.use_local_subchannel_pool", 1)])

def failed(way, what):
    with lock:
        failures.append("%s: %s" % (way, what))

def call(way):
    say = channel().unary_unary("/%s.Echo/Say" % way)
    number = 0
    while not end.is_set() and len(failures) < 10:
        number += 1
        text = b"%d " % number + b"x" * (number % 5000)
        try:
            answer = say(text, timeout=10)
            if not answer.endswith(b" " + text):
                failed(way, "a wrong answer")
        except grpc.RpcError as error:
            failed(way, "%s %s" % (error.code(), error.details()))
    with lock:
        calls["calls"] += number

def talk(way):
    sent = queue.Queue()
    answers = channel().stream_stream("/%s.Echo/Talk" % way)(iter(sent.get, None))
    number = 0
    servers = set()
    try:
        while not end.wait(0.02):
            number += 1
            sent.put(b"%d" % number)
            server, text = next(answers).split(b" ")
            servers.add(server)
            if text != b"%d" % number or len(servers) > 1:
                failed(way, "a wrong answer in a stream")
        sent.put(None)
        if list(answers):
            failed(way, "more answers in a stream than requests")
    except Exception as error:
        failed(way, "stream: %s" % error)
    with lock:
        calls["messages"] += number

threads = [threading.Thread(target=run, args=(way,), daemon=True)
    for run in (call, call, talk) for way in ("fixed", "variable")]
for thread in threads:
    thread.start()
while not end.wait(0.1):
    pass
for thread in threads:
    thread.join(20)
    if thread.is_alive():
        failed("a thread", "does not end")
print("calls %d messages %d" % (calls["calls"], calls["messages"]))
for failure in failures[:20]:
    print("failed " + failure)
sys.stdout.flush()
EOT
    my $client = part('client', '/usr/bin/python3', $script, '127.0.0.1:' . $t->port(0));
    return sub {
        $client->stop('TERM', 30);
        my $output = $t->read_file('client.log');
        my ($calls, $messages) = $output =~ /^calls (\d+) messages (\d+)$/m;
        cmp_ok($messages // 0, '>', 10, 'messages in streams: ' . ($messages // 0));
        return ($calls // 0, defined $calls ? join '', $output =~ /^failed .*\n/mg : $output);
    };
}
