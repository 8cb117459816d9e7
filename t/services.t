#!/usr/bin/perl

# Servers from Consul's catalog and its health checks: upsync_type=consul_services, consul_health.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my $backends = $t->backends(2);
my ($first, $second) = $backends->addresses;
my ($first_port, $second_port) = $backends->ports;

my %paths = (
    catalog => ['/v1/catalog/service/app', 'consul_services'],
    health => ['/v1/health/service/app', 'consul_health'],
    passing => ['/v1/health/service/app?passing', 'consul_health'],
    tags => ['/v1/catalog/service/tags', 'consul_services'],
    healthtags => ['/v1/health/service/tags', 'consul_health'],
    none => ['/v1/catalog/service/none', 'consul_services'],
);
my $upstreams = join '', map { <<"EOF" } sort keys %paths;
    upstream $_ {
        upsync @{[ $consul->address ]}$paths{$_}[0] upsync_type=$paths{$_}[1] upsync_interval=50ms;
    }
EOF
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
$upstreams
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location /list { upstream_show; }
        location ~ ^/to/(\\w+) { proxy_pass http://\$1; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { dyups_interface read; }
    }
}
EOF
$t->run;

my $rest = 'max_fails=2 fail_timeout=10s';

sub servers_are {
    my ($upstream, $expected, $name) = @_;
    my @servers;
    wait_until {
        @servers = sort(http_get($t->port(0), "/list?$upstream")->{body} =~ /^ {8}server (.*);$/mg);
        "@servers" eq "@{[ sort @$expected ]}";
    } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\@servers, [sort @$expected], $name // $upstream);
}

# Whether a server is down, and whether that is for its checks.
sub told_apart {
    my ($upstream, $server) = @_;
    my $shown = json(http_get($t->port(1), "/upstream/$upstream?format=json")->{body});
    my ($found) = grep { $_->{server} eq $server } @{ $shown->{servers} };
    return { map { $_ => $found->{$_} ? 'yes' : 'no' } qw(down critical) };
}

sub answers {
    my ($upstream, $number) = @_;
    my %answers;
    $answers{ http_get($t->port(0), "/to/$upstream")->{body} =~ /^hello world by (\S+)$/ ? $1 : 'none' }++ for 1 .. $number;
    return \%answers;
}

sub log_has {
    my ($upstream, $line) = @_;
    my $text = qq{upsync: upstream "$upstream": $line};
    wait_until { $t->log =~ /\Q$text\E$/m } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(scalar(() = $t->log =~ /\Q$text\E$/mg), 1, "logged once: $line");
}

subtest 'a service that nobody has registered' => sub {
    my $no = 'consul ' . $consul->address . ': no servers under';
    log_has('none', "$no /v1/catalog/service/none, no list yet");
    log_has('passing', "$no /v1/health/service/app, no list yet");
};

subtest 'tags, weights and addresses' => sub {
    my @table = (
        # ID, fields, what is shown.
        ['plain', { Address => '127.0.0.1', Port => 1 }, "127.0.0.1:1 weight=1 $rest"],
        ['node', { Port => 2 }, "127.0.0.1:2 weight=1 $rest"],
        ['weights', { Address => '127.0.0.1', Port => 3, Weights => { Passing => 5, Warning => 2 } },
            "127.0.0.1:3 weight=5 $rest"],
        ['tags', { Address => '127.0.0.1', Port => 4, Weights => { Passing => 5, Warning => 2 },
            Tags => ['v1', 'weight=7', 'max_fails=3', 'fail_timeout=1m30s', 'max_conns=9', 'backup', 'weightless'] },
            '127.0.0.1:4 weight=7 max_fails=3 fail_timeout=90s max_conns=9 backup'],
        ['down', { Address => '127.0.0.1', Port => 5, Tags => ['down', 'weight=0'] }, "127.0.0.1:5 weight=0 $rest down"],
        ['ipv6', { Address => '::1', Port => 6 }, "[::1]:6 weight=1 $rest"],
        ['badtag', { Address => '127.0.0.1', Port => 7, Tags => ['weight=many', 'max_fails=5'] },
            "127.0.0.1:7 weight=1 $rest"],
        ['noport', { Address => '127.0.0.1' }],
    );
    $consul->register_service(Name => 'tags', ID => $_->[0], %{ $_->[1] }) for @table;
    for my $upstream (qw(tags healthtags)) {
        servers_are($upstream, [map { $_->[2] // () } @table]);
        log_has($upstream, 'service "noport": invalid port in "127.0.0.1:0", expected 1 to 65535, skipped');
        log_has($upstream,
            'service "badtag": tag: invalid value in "weight=many", expected 0 to 65535, '
                . 'its last good parameters stay, or else the defaults');
        is_deeply(told_apart($upstream, '127.0.0.1:5'), { down => 'yes', critical => 'no' }, 'down by the operator');
    }
};

subtest 'checks' => sub {
    my $register = sub {
        my ($id, $port) = @_;
        $consul->register_service(Name => 'app', ID => $id, Address => '127.0.0.1', Port => $port + 0,
            Weights => { Passing => 8, Warning => 2 },
            Check => { CheckID => $id, TTL => '600s', Status => 'passing' });
    };
    $register->('first', $first_port);
    $register->('second', $second_port);
    my @both = map { "$_ weight=8 $rest" } $first, $second;
    servers_are($_, \@both) for qw(catalog health passing);
    is_deeply(answers('health', 4), { $first => 2, $second => 2 }, 'both serve');

    $consul->set_check('first', 'fail');
    servers_are('health', ["$first weight=8 $rest down", $both[1]], 'critical is down');
    is_deeply(told_apart('health', $first), { down => 'yes', critical => 'yes' }, 'and told apart');
    is_deeply(told_apart('health', $second), { down => 'no', critical => 'no' }, 'from the other');
    servers_are('passing', [$both[1]], 'and not in an answer of those that pass');
    is_deeply(answers('health', 4), { $second => 4 }, 'the other serves');

    $consul->set_check('first', 'warn');
    servers_are('health', ["$first weight=2 $rest", $both[1]], 'warning has a weight of its own');
    is_deeply(told_apart('health', $first), { down => 'no', critical => 'no' }, 'and is not critical');
    is_deeply(answers('health', 5), { $first => 1, $second => 4 }, 'by which it serves');

    $consul->set_check('first', 'pass');
    servers_are('health', \@both, 'passing again');
    servers_are('passing', \@both, 'passing again');

    is($consul->put('/v1/agent/service/maintenance/second?enable=true')->{status}, 200, 'maintenance');
    servers_are('health', [$both[0], "$second weight=8 $rest down"], 'is down too');
    is_deeply(told_apart('health', $second), { down => 'yes', critical => 'yes' }, 'by Consul');
    is($consul->put('/v1/agent/service/maintenance/second?enable=false')->{status}, 200, 'no maintenance');
    servers_are('health', \@both, 'up again');
    servers_are('catalog', \@both, 'the catalog knows of no health');
};

subtest 'services that leave' => sub {
    $consul->deregister_service('second');
    servers_are($_, ["$first weight=8 $rest"]) for qw(catalog health passing);
    $consul->set_check('first', 'fail');
    log_has('passing', 'consul ' . $consul->address
        . ': no servers under /v1/health/service/app, keeping the last list (1 server)');
    servers_are('passing', ["$first weight=8 $rest"], 'when none passes the last list stays');
    $consul->deregister_service('first');
    log_has($_, 'consul ' . $consul->address . ': no servers under '
        . ($paths{$_}[0]) . ', keeping the last list (1 server)') for qw(catalog health);
    servers_are('catalog', ["$first weight=8 $rest"], 'when none is left the last list stays');
    is_deeply(answers('catalog', 1), { $first => 1 }, 'and serves');
};

$t->done;
