#!/usr/bin/perl

# Lists that are posted as the clients of Slardar do it.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time);
use Time::Local qw(timegm);

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $socket = 'unix:' . $t->testdir . '/a.sock';
my @backends = ((map { $t->backends(1) } 1 .. 3), $t->backends(0, listen => [$socket]));
my ($first, $second, $third) = map { $_->addresses } @backends;
my $dead = '127.0.0.1:' . $t->free_port;

# From 1.29.7 on nginx keeps so many connections without a directive.
my ($minor, $patch) = `${\ Test::Upsync::nginx_binary() } -v 2>&1` =~ m{/1\.(\d+)\.(\d+)};
my $kept = $minor > 29 || $minor == 29 && $patch >= 7 ? 32 : undef;
my $unkept = $kept ? 'keepalive 0;' : '';

$t->write_file_expand('nginx.conf', <<"EOT");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    default_type text/html;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    dyups_upstream common;
    upstream common { dyups \$host; keepalive 16; }
    upstream group { server $second weight=2 max_fails=3 fail_timeout=20s; server $third backup; $unkept }
    server {
        # A socket for each worker: the kernel then spreads connections over them.
        listen 127.0.0.1:%%PORT_0%% reuseport;
        add_header X-Pid \$pid always;
        location / { proxy_pass http://common; }
        location /host { proxy_pass http://\$host; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%% reuseport;
        location / { dyups_interface; }
    }
}
EOT
my ($started, @workers) = (int time);
$t->run;
my ($traffic, $slardar) = map { $t->port($_) } 0 .. 1;
wait_until { (@workers = $t->workers) == 2 } 10, 'two workers';

# As `curl -d` sends it.
sub post {
    my ($name, $body, %opt) = @_;
    return http($opt{method} // 'POST', $slardar, "/upstream/$name", body => $body, timeout => 20,
        headers => { 'Content-Type' => 'application/x-www-form-urlencoded', Accept => '*/*', %{ $opt{headers} // {} } });
}

sub accepted {
    my ($name, $body, $label, %opt) = @_;
    my $answer = post($name, $body, %opt);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is("$answer->{status} $answer->{headers}{'content-type'} $answer->{body}",
        '200 application/json {"status":200}', $label);
}

sub refused {
    my ($name, $body, $message, $label) = @_;
    my $answer = post($name, $body);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is("$answer->{status} $answer->{headers}{'content-type'} $answer->{body}",
        '400 application/json {"status":400,"msg":' . JSON::PP->new->allow_nonref->encode($message) . '}', $label // $body);
}

# A server as Slardar writes it.
sub server {
    my ($address, $more) = @_;
    my ($host, $port) = $address =~ /^(.*):(\d+)$/;
    return qq({"host":"$host","port":$port) . ($more // '') . '}';
}

sub level { return '{"servers":[' . join(',', map { server(ref $_ ? @$_ : $_) } @_) . ']}' }

sub listed { return http_get($slardar, "/upstream/$_[0]")->{body} =~ /^server (.*)$/mg }

# The servers with all their parameters.
sub detail {
    my ($servers) = http_get($slardar, '/detail')->{body} =~ /^\Q$_[0]\E\n(.*?)^\n/ms;
    return $servers // '';
}

sub who {
    my ($host, $number) = @_;
    my %counts;
    for (1 .. $number) {
        my $answer = http_get($traffic, '/', host => $host);
        $counts{ $answer->{body} =~ /^hello world by (\S+)$/ ? $1 : $answer->{error} // $answer->{status} }++;
    }
    return \%counts;
}

sub on_all_workers {
    my ($host, $expected, $label) = @_;
    my %said = map { $_ => {} } @workers;
    for my $uri ('/', '/host') {
        my $until = time + 10;
        while (time < $until && grep { !$_->{$uri} } values %said) {
            my $answer = http_get($traffic, $uri, host => $host);
            my ($by) = $answer->{body} =~ /^hello world by (\S+)$/;
            $said{ $answer->{headers}{'x-pid'} // 'none' }{$uri} = $by // $answer->{status};
        }
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\%said, { map { $_ => { '/' => $expected, '/host' => $expected } } @workers }, $label);
}

subtest 'the session of Slardar' => sub {
    my $name = 'node-dev.upyun.com';
    is(http_get($traffic, '/', host => $name)->{status}, 502, 'no such host yet');
    my $body = <<'EOT';
{"servers":[
       {"host":"10.0.5.108", "port": 4001},
       {"host":"10.0.5.109", "port": 4001}],
       "keepalive": 20}
EOT
    my $answer = post($name, $body);
    is("$answer->{status} $answer->{body}", '200 {"status":200}', 'as it stands there');
    is($answer->{headers}{'content-type'}, 'application/json', 'JSON');
    is($answer->{headers}{'x-keepalive'}, 16, 'what is kept is that of "dyups_upstream"');
    is_deeply([ listed($name) ], [ '10.0.5.108:4001', '10.0.5.109:4001' ], 'listed');

    my %port = map { ("10.0.5.$_->[0]" => $_->[1] =~ /(\d+)$/) } [ 108, $first ], [ 109, $second ];
    $body =~ s/"(10\.0\.5\.\d+)", "port": 4001/"127.0.0.1", "port": $port{$1}/g;
    accepted($name, $body, 'with servers that are there');
    is_deeply(who($name, 10), { $first => 5, $second => 5 }, 'both serve');
    accepted($name, level($second), 'one of them goes');
    on_all_workers($name, $second, 'the other serves, on every worker');
    is(post($name, level($second))->{headers}{'x-keepalive'}, undef, 'nobody asked what is kept');
    accepted($name, level($first), 'PUT', method => 'PUT');
    accepted(uc $name, level($first), 'a name in upper case');
    accepted($name, level($first), 'the type that JSON has', headers => { 'Content-Type' => 'application/json; charset=utf-8' });
    on_all_workers($name, $first, 'serves');
    my $delete = http('DELETE', $slardar, "/upstream/$name?format=json");
    is("$delete->{status} $delete->{body}", '200 {"status":200}', 'DELETE');
    on_all_workers($name, 502, 'nobody serves');
};

subtest 'servers of every kind and with every parameter' => sub {
    accepted('kinds', '{"servers":[' . join(',',
        '{"host":"192.168.1.1","port":8080,"weight":1,"max_fails":6,"fail_timeout":30}',
        '{"port":"81","host":"192.168.1.2","weight":"5","max_conns":7,"down":true,"backup":"1"}',
        '{"host":"::1","port":80,"weight":null}', '{"host":"[::2]","port":80}', "{\"host\":\"$socket\"}",
        '{"host":"upstream:Group","max_fails":2}', '{"ho\u0073t":"127.0.0.\u0031","port":1}',
    ) . '],"try":2,"enable":false,"http_opts":{"query":"GET / HTTP/1.0\r\n\r\n","statuses":{"500":false}},"keepalive":null}',
        'posted');
    my $rest = 'max_fails=1 fail_timeout=10 backup=0 down=0';
    is(detail('kinds'), <<"EOT", 'each as it was meant');
server 192.168.1.1:8080 weight=1 max_conns=0 max_fails=6 fail_timeout=30 backup=0 down=0
server 192.168.1.2:81 weight=5 max_conns=7 max_fails=1 fail_timeout=10 backup=1 down=1
server [::1]:80 weight=1 max_conns=0 $rest
server [::2]:80 weight=1 max_conns=0 $rest
server $socket weight=1 max_conns=0 $rest
server $second weight=2 max_conns=0 max_fails=2 fail_timeout=20 backup=0 down=0
server $third weight=1 max_conns=0 max_fails=2 fail_timeout=10 backup=1 down=0
server 127.0.0.1:1 weight=1 max_conns=0 $rest
EOT
    accepted('kinds', "{\"servers\":[{\"host\":\"$socket\"}]}", 'a socket');
    on_all_workers('kinds', $socket, 'serves');
    accepted('kinds', '{"servers":[{"host":"upstream:group"}]}', 'a group of nginx.conf');
    on_all_workers('kinds', $second, 'serves');
    my ($port) = $first =~ /:(\d+)/;
    accepted('kinds', qq({"servers":[{"host":"LocalHost","port":$port,"max_fails":0}]}), 'a host name');
    on_all_workers('kinds', $first, 'serves');
    is(http('DELETE', $slardar, '/upstream/kinds')->{body}, 'success', 'DELETE without a word of JSON is that of dyups');
};

subtest 'levels: the first serves, the others are its backup' => sub {
    my $quick = ',"max_fails":1,"fail_timeout":1';
    my %bodies = (
        'an array' => '{"cluster":[' . join(',', level([ $first, $quick ]), level($second), level($third)) . ']}',
        'an object, in its order' => '{"cluster":{' . join(',', '"z":' . level([ $first, $quick ]),
            '"b":' . level($second), '"a":' . level($third)) . '}}',
    );
    for my $form (sort keys %bodies) {
        accepted('levels', $bodies{$form}, $form);
        my $rest = 'fail_timeout=10 backup=1 down=0';
        is(detail('levels'), "server $first weight=1 max_conns=0 max_fails=1 fail_timeout=1 backup=0 down=0\n"
            . join('', map { "server $_ weight=1 max_conns=0 max_fails=1 $rest\n" } $second, $third), 'levels');
        is_deeply(who('levels', 10), { $first => 10 }, 'the first serves alone');
        $backends[0]->stop;
        is_deeply([ sort keys %{ who('levels', 20) } ], [ sort $second, $third ], 'without it the others, and no request fails');
        $backends[0]->run;
        wait_until { who('levels', 1)->{$first} } 10, 'it is back';
        is_deeply(who('levels', 10), { $first => 10 }, 'and serves alone');
    }
    accepted('levels', '{"cluster":[' . level([ $first, ',"backup":true' ], $second) . ',' . level([ $third, ',"backup":false' ]) . ']}',
        'the level says more about it than the server');
    is_deeply([ detail('levels') =~ /server (\S+) .* (backup=.)/g ],
        [ $first => 'backup=1', $second => 'backup=0', $third => 'backup=1' ], 'but in the first');
    accepted('levels', '{"cluster":[' . level($first) . ']}', 'one level');
    on_all_workers('levels', $first, 'serves');
    http('DELETE', $slardar, '/upstream/levels');
};

subtest 'errors in the words of Slardar' => sub {
    accepted('app', level($first), 'a list');
    my $before = http_get($slardar, '/upstream/app?format=json')->{body};
    my $good = server($first);
    for (
        ['{', 'decode body error: line 1, column 1: EOF while parsing an object'],
        ["{\"servers\":[$good],}", 'decode body error: line 1, column ' . (15 + length $good) . ': key must be a string'],
        ["{\"servers\":[$good],\"servers\":[$good]}", 'body invalid: key "servers" is there twice'],
        ["{\"servers\":[$good],\"keepalive\":\"many\"}", 'body invalid: "keepalive" is \"many\", expected 1 to 65535'],
        ['{"cluster":[5]}', 'body invalid: level 0: expected an object, not 5'],
        ['{"servers":[]}', 'can not update empty level: level 0 has no servers'],
        ['{"keepalive":20}', 'can not update empty level: neither "servers" nor "cluster" is there'],
        ['{"cluster":{}}', 'can not update empty level: "cluster" is empty'],
        ["{\"cluster\":[{\"servers\":[$good]},{}]}", 'can not update empty level: level 1 has no servers'],
        ["{\"servers\":{\"a\":$good}}", 'servers invalid: level 0: expected an array, not ' . "{\"a\":$good}" =~ s/"/\\"/gr],
        ["{\"servers\":[$good,null]}", 'servers invalid: server 1: expected an object, not null'],
        ['{"servers":[{"host":"127.0.0.1","port":"http"}]}', 'servers invalid: server 0: "port" is \"http\", expected 1 to 65535'],
        ['{"servers":[{"host":"127.0.0.1","port":1,"fail_timeout":"10s"}]}',
            'servers invalid: server 0: "fail_timeout" is \"10s\", expected 0 to 2147483647'],
        ['{"servers":[{"host":"unix:/a","port":80}]}', 'servers invalid: server 0: "port" is 80, expected none for "unix:/a"'],
        ['{"servers":[{"host":"upstream:none"}]}', 'servers invalid: server 0: upstream "none" is not in nginx.conf'],
        ['{"servers":[{"host":"upstream:common"}]}', 'servers invalid: server 0: upstream "common" has no servers'],
        ['{"servers":[{"host":"x.invalid","port":80}]}', 'servers invalid: server 0: host name "x.invalid" does not resolve'],
        ['{"servers":[{"port":80}]}', 'no server.host nor server.port found: server 0'],
        ["{\"cluster\":[{\"servers\":[$good]},{\"servers\":[$good,{\"host\":\"a\"}]}]}", 'no server.host nor server.port found: server 2'],
    ) {
        refused('app', @$_);
    }
    refused('group', "{\"servers\":[$good],\n\"keepalive\":20}",
        'body invalid: line 2, column 13: "keepalive" needs "keepalive" in the block of upstream "group" in nginx.conf');
    is(http_get($slardar, '/upstream/app?format=json')->{body}, $before, 'nothing changed');

    my %json = (headers => { Accept => 'application/json' });
    for my $way (['?format=json'], ['', %json]) {
        my ($query, %opt) = @$way;
        my $told = sub {
            my $answer = http($_[0], $slardar, $_[1] . $query, body => $_[2], %opt);
            return "$answer->{status} $answer->{headers}{'content-type'} $answer->{body}";
        };
        my $unknown = sub { '400 application/json {"status":400,"msg":"upstream ' . $_[0] . ' not found"}' };
        is($told->('DELETE', '/upstream/nobody'), $unknown->('nobody'), 'DELETE of an unknown one');
        is($told->('DELETE', '/upstream/Nobody'), $unknown->('nobody'), 'in whatever case');
        is($told->('POST', '/upstream/nobody/server', $good), $unknown->('nobody'), 'a server for it');
        is($told->('GET', '/upstream/nobody') =~ s/404/400/gr, $unknown->('nobody'), 'GET of it is 404');
        is($told->('PATCH', '/upstream/app', $good),
            '405 application/json {"status":405,"msg":"method not allowed"}', 'a method that there is not');
        is($told->('POST', '/upstream/app', ''),
            '400 application/json {"status":400,"msg":"decode body error: empty body"}', 'no body');
        is($told->('POST', '/upstream/a,b', level($first)), '400 application/json {"status":400,"msg":'
            . '"invalid upstream name, expected 1 to 255 letters, digits, \".\", \"-\", \"_\" or \":\""}', 'a name that is none');
    }
    http('DELETE', $slardar, '/upstream/app');
};

# The parts of a time in UTC, as seconds since 1970.
sub seconds {
    my @parts = ($_[0] // '') =~ /^(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)$/ or return;
    return timegm(@parts[ 5, 4, 3, 2 ], $parts[1] - 1, $parts[0]);
}

sub status { return json(http_get($slardar, '/status')->{body}) }

subtest 'GET /status' => sub {
    my $status = status();
    my @cls = sort grep { /^cls:/ } keys %$status;
    is_deeply(\@cls, [ 'cls:common', 'cls:group' ], 'the upstreams of nginx.conf') or diag explain $status;
    is_deeply($status->{'cls:common'}, [[]], 'one without servers');
    my $start = $status->{start_time};
    my $at = seconds($start);
    ok($at && $at >= $started && $at <= time, "start_time: $start");
    is_deeply($status->{'cls:group'}, [
        [ { server => "group:$second", status => 'unchecked', weight => 2, max_fails => 3, fail_timeout => 20, fail_num => 0,
            lastmodified => $start, msg => undef } ],
        [ { server => "group:$third", status => 'unchecked', weight => 1, max_fails => 1, fail_timeout => 10, fail_num => 0,
            lastmodified => $start, msg => undef } ],
    ], 'one with two levels') or diag explain $status->{'cls:group'};
    delete @$status{ @cls, 'start_time' };
    is_deeply($status, {
        checkup_timer_alive => JSON::PP::false, last_check_time => undef, conf_hash => undef,
        shd_config_version => 0, config_timer => { 'worker-0' => 'alive', 'worker-1' => 'alive' }, slardar_version => '1.1.2',
    }, 'the rest') or diag explain $status;

    for my $way (['/status'], ['/STATUS/'], ['/status?format=text'], ['/status?format=json'], ['/status', Accept => 'text/plain']) {
        my ($uri, %headers) = @$way;
        my $answer = http_get($slardar, $uri, headers => \%headers);
        is("$answer->{status} $answer->{headers}{'content-type'}", '200 application/json', "$uri is JSON");
        is($answer->{headers}{'content-length'}, length $answer->{body}, 'length');
    }
    is(http($_->[0], $slardar, '/status', body => '{}')->{status}, $_->[1], "$_->[0] /status")
        for ['POST', 404], ['PUT', 404], ['DELETE', 405], ['HEAD', 405];
};

subtest 'how servers are, by /status' => sub {
    my $before = int time;
    my $bad = [ $dead, ',"max_fails":2,"fail_timeout":600' ];
    accepted('app', '{"cluster":[' . level($bad, [ $first, ',"weight":3' ], [ $second, ',"down":true' ]) . ',' . level($third) . ']}',
        'two levels');
    my $words = sub { [ map { [ map { "$_->{status} $_->{fail_num}" } @$_ ] } @{ status()->{'cls:app'} } ] };
    my $asked = sub { who('app', 1); return $words->()->[0][0] };
    my $status = status();
    is_deeply([ map { [ map { $_->{server} } @$_ ] } @{ $status->{'cls:app'} } ],
        [ [ map { "app:$_" } $dead, $first, $second ], [ "app:$third" ] ], 'servers');
    is_deeply($words->(), [ [ 'unchecked 0', 'unchecked 0', 'err 0' ], ['unchecked 0'] ], 'one is down');
    my $modified = $status->{'cls:app'}[0][0]{lastmodified};
    my $at = seconds($modified);
    ok($at && $at >= $before && $at <= time, "lastmodified: $modified");
    cmp_ok($status->{shd_config_version}, '>', 0, 'a change has a version');

    wait_until { $asked->() ne 'unchecked 0' } 10, 'a server fails';
    is_deeply($words->(), [ [ 'unstable 1', 'unchecked 0', 'err 0' ], ['unchecked 0'] ], 'once');
    wait_until { $asked->() ne 'unstable 1' } 10, 'it fails again';
    is_deeply($words->(), [ [ 'err 2', 'unchecked 0', 'err 0' ], ['unchecked 0'] ], 'and is out');
    is_deeply(who('app', 5), { $first => 5 }, 'nobody asks it');

    my $version = status()->{shd_config_version};
    accepted('app', level($bad, $first), 'another list');
    cmp_ok(status()->{shd_config_version}, '>', $version, 'has another version');
    is_deeply($words->(), [ [ 'err 2', 'unchecked 0' ] ], 'what stays is as it was');
    accepted('app', level($first), 'it goes');
    accepted('app', level($bad, $first), 'and comes back');
    is_deeply($words->(), [ [ 'unchecked 0', 'unchecked 0' ] ], 'it has a new start');
    is(http('DELETE', $slardar, '/upstream/app')->{status}, 200, 'DELETE');
    is(status()->{'cls:app'}, undef, 'gone');
    is(http('DELETE', $slardar, '/upstream/group')->{status}, 200, 'DELETE of one of nginx.conf');
    is(status()->{'cls:group'}, undef, 'gone, too');
    is(http('POST', $slardar, '/upstream/group/reset')->{status}, 200, 'reset');
    is(scalar @{ status()->{'cls:group'} }, 2, 'back');
};

is_deeply([ sort $t->workers ], [ sort @workers ], 'no worker died');
$t->done;
