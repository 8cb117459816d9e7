#!/usr/bin/perl

# What crashed or stuck nginx-upsync-module when it was tried.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $fake = $t->fake_consul;
my $consul = $t->consul;
my $backends = $t->backends(2);
my ($first, $second) = $backends->addresses;
my $gone = $t->backends(1);
my ($old) = $gone->addresses;
my $rest = 'max_fails=2 fail_timeout=10s';
my $defaults = "weight=1 $rest";

sub upstream {
    my ($name, $address, $more) = @_;
    return "upstream $name {\nupsync $address/v1/kv/$name/ upsync_type=consul upsync_interval=50ms;\n"
        . "upsync_dump_path $name.conf;\n" . ($more // '') . "\n}\n";
}

my $upstreams = join '', upstream('zone', $consul->address, "zone zone 64k;\nserver 127.0.0.1:1 down;"),
    upstream('headers', $fake->address), upstream('replaced', $consul->address, "server $old;"),
    map { upstream($_, $consul->address) } qw(large value twice grown);
my $conf = <<"EOF";
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
$upstreams
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location /list { upstream_show; }
        location ~ ^/to/(\\w+) { proxy_pass http://\$1; proxy_connect_timeout 2s; }
    }
}
EOF
$t->write_file_expand('nginx.conf', $conf);
$consul->kv_put("grown/$first", '');
$t->run;

sub servers { return http_get($t->port(0), "/list?$_[0]")->{body} =~ /^ {8}server (.*);$/mg }

sub servers_are {
    my ($name, $servers, $text) = @_;
    my @shown;
    wait_until { "@{[ @shown = sort(servers($name)) ]}" eq "@{[ sort @$servers ]}" } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\@shown, [sort @$servers], $text // 'list');
}

# Who answers N requests: address => number.
sub answers {
    my ($name, $number) = @_;
    my %answers;
    for (1 .. $number) {
        my $answer = http_get($t->port(0), "/to/$name");
        $answers{ $answer->{body} =~ /^hello world by (\S+)$/ ? $1 : $answer->{error} // $answer->{status} }++;
    }
    return \%answers;
}

subtest '"zone" in the block' => sub {
    $consul->kv_put("zone/$_", '') for $first, $second;
    servers_are('zone', [map { "$_ $defaults" } $first, $second]);
    is_deeply(answers('zone', 6), { $first => 3, $second => 3 }, 'serves');
    $consul->kv_delete("zone/$first");
    servers_are('zone', ["$second $defaults"], 'one leaves');
    is_deeply(answers('zone', 4), { $second => 4 }, 'the other serves');
};

subtest '60 response headers' => sub {
    for my $servers ([$first], [$first, $second]) {
        $fake->reply_kv(10 + @$servers, { map { ("headers/$_" => undef) } @$servers },
            path => '/v1/kv/headers/', headers => [map { ("X-Header-$_" => 'x' x 100) } 1 .. 60]);
        servers_are('headers', [map { "$_ $defaults" } @$servers], @$servers . ' servers');
    }
    is_deeply(answers('headers', 4), { $first => 2, $second => 2 }, 'serve');
};

subtest 'an answer over 4 MiB' => sub {
    my %values = map { ("127.0.0.1:$_" => { weight => $_, comment => 'x' x 400_000 }) } 1 .. 10;
    $consul->kv_put("large/$_", $values{$_}) for sort keys %values;
    cmp_ok(length $consul->get('/v1/kv/large/?recurse')->{body}, '>', 4 * 2 ** 20, 'it is');
    servers_are('large', [map { "127.0.0.1:$_ weight=$_ $rest" } 1 .. 10], 'all of it is read');
    $consul->kv_put('large/127.0.0.1:5', { weight => 55 });
    servers_are('large', [map { "127.0.0.1:$_ weight=" . ($_ == 5 ? 55 : $_) . " $rest" } 1 .. 10], 'a change');
};

subtest 'a value of 60 KB' => sub {
    $consul->kv_put("value/$first", { weight => 3, comment => 'x' x 60_000 });
    $consul->kv_put("value/$second", 'x' x 60_000);
    servers_are('value', ["$first weight=3 $rest", "$second $defaults"]);
    is_deeply(answers('value', 4), { $first => 3, $second => 1 }, 'serves');
    my @long = grep { length > 1000 } split /\n/, $t->log;
    is("@long", '', 'the log has no line of its size');
};

subtest 'the same address twice, and one deleted' => sub {
    $consul->kv_put("twice/$_", '') for $first, "a/$first", "b/$second";
    servers_are('twice', [map { "$_ $defaults" } $first, $second], 'one server');
    is_deeply(answers('twice', 4), { $first => 2, $second => 2 }, 'and one share');
    $consul->kv_delete("twice/$first");
    $consul->kv_put("twice/b/$second", { weight => 3 });
    servers_are('twice', ["$first $defaults", "$second weight=3 $rest"], 'it stays');
    is_deeply(answers('twice', 4), { $first => 1, $second => 3 }, 'and serves');
    $consul->kv_delete("twice/a/$first");
    servers_are('twice', ["$second weight=3 $rest"], 'both deleted, it leaves');
    is_deeply(answers('twice', 4), { $second => 4 }, 'and serves no more');
};

subtest 'one server at the start, then two live and two dead' => sub {
    servers_are('grown', ["$first $defaults"], 'one');
    is_deeply(answers('grown', 4), { $first => 4 }, 'serves');
    my @dead = map { '127.0.0.1:' . $t->free_port } 1 .. 2;
    $consul->kv_put_many({ map { ("grown/$_" => '') } $second, @dead });
    servers_are('grown', [map { "$_ $defaults" } $first, $second, @dead], 'four');
    my $answers = answers('grown', 40);
    is_deeply([sort keys %$answers], [sort $first, $second], 'every request finds a live one');
    my $failures = () = $t->log =~ /connect\(\) failed .*\/to\/grown/g;
    is($failures, 4, 'the dead are asked twice each, as max_fails says');
};

subtest 'a killed worker\'s replacement knows what has left' => sub {
    servers_are('replaced', ["$old max_fails=1 fail_timeout=10s" =~ s/ / weight=1 /r], 'the configured one first');
    $consul->kv_put("replaced/$first", '');
    servers_are('replaced', ["$first $defaults"], 'then that of Consul');
    my $before = keys %{ { map { ($_->{connection} => 1) } $gone->requests } };
    my $wrong = 0;
    # Nobody can ask Consul now.
    $consul->pause;
    for my $worker ($t->workers) {
        kill 'KILL', $worker;
        $t->expect_log(qr/process $worker exited on signal 9/);
        my $deadline = time + 10;
        until ((grep { $_ != $worker } $t->workers) >= 2 && !(grep { $_ == $worker } $t->workers)) {
            last if time > $deadline;
            # Only who is at the moment without a worker may fail.
            my @servers = servers('replaced');
            $wrong++ if @servers && "@servers" ne "$first $defaults";
            $wrong++ if (answers('replaced', 1))->{$old};
        }
        $wrong++ for grep { $_ ne $first } keys %{ answers('replaced', 10) };
        servers_are('replaced', ["$first $defaults"], 'list');
    }
    is($wrong, 0, 'each request went to the right one');
    is(keys(%{ { map { ($_->{connection} => 1) } $gone->requests } }) - $before, 0, 'the old one was not asked');
    $consul->resume;
    $consul->kv_put("replaced/$second", '');
    servers_are('replaced', ["$first $defaults", "$second $defaults"], 'Consul is followed on');
};

subtest 'strong_dependency=on with Consul down' => sub {
    my $nginx = $t->another_nginx(<<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app {
        upsync @{[ $consul->address ]}/v1/kv/grown/ upsync_type=consul strong_dependency=on;
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { proxy_pass http://app; }
    }
}
EOF
    $nginx->expect_log(qr/strong_dependency/);
    $nginx->run;
    is(http_get($t->port(1), '/')->{status}, 200, 'served while Consul is up');
    $consul->stop;
    is(scalar $nginx->kill_worker, 1, 'a worker that dies later has a successor');
    is(http_get($t->port(1), '/')->{status}, 200, 'which serves');
    ok($nginx->stop, 'stopped');
    is($nginx->start->exited, 1, 'without Consul nginx does not start');
    like($nginx->log, qr/\[emerg\] \S+ upsync: upstream "app": connection refused, and "upsync" has strong_dependency=on$/m,
        'and says why');
};

my @alive = $t->workers;
is(scalar @alive, 2, 'two workers live');
$t->done;
