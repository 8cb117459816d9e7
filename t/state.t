#!/usr/bin/perl

# The folder of dyups_state_path: lists that were posted outlive nginx.

use strict;
use warnings;

use Fcntl qw(:flock S_IMODE);
use File::Basename qw(basename);
use IO::Select;
use IO::Socket::UNIX;
use POSIX qw(mkfifo);
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;

my $times = $ENV{TEST_TIMES} // 20;

# As root with workers that are not, as Debian has them.
my $t = Test::Upsync->new($> == 0 ? (user => 'nobody') : ());
my $dir = $t->testdir;
my ($uid, $gid) = $> == 0 ? (getpwnam 'nobody')[2, 3] : ($>, (split ' ', $))[0]);
my @servers = $t->backends(4)->addresses;
my $fake = $t->fake_consul;

my $long = 'l' x 255;
my @served = ($servers[0], "$servers[1] weight=2");

# An nginx with a folder of its own for its lists.
my $sites = 0;

sub site {
    my (%is) = @_;
    my $site = { number => $sites, port => $t->port($sites), state => "$dir/state-$sites" };
    $sites++;
    $site->{nginx} = $t->another_nginx(conf($site, %is));
    return $site;
}

sub up {
    my $site = shift;
    $site->{nginx}->run;
    wait_until { $site->{nginx}->workers == 2 } 10 or die "no two workers\n";
    return 1;
}

sub conf {
    my ($site, %is) = @_;
    my $state = exists $is{state} ? $is{state} : $site->{state};
    my $path = defined $state ? "dyups_state_path $state;" : '';
    my $zone = $is{zone} // '4m';
    my $upstreams = $is{upstreams} // join '', map { "upstream $_ { server $servers[3]; }\n" } qw(page gone back);
    return <<"EOF";
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    client_max_body_size 10m;
    client_body_buffer_size 16k;
    large_client_header_buffers 4 16k;
    upsync_zone $zone;
    $path
    $upstreams
    server {
        listen 127.0.0.1:%%PORT_$site->{number}%% reuseport;
        add_header X-Pid \$pid always;
        location /api { dyups_interface; }
        location = /pid { return 200 \$pid; }
        location / { proxy_pass http://\$http_x_name; }
    }
}
EOF
}

sub configure {
    my ($site, %is) = @_;
    $t->write_file_expand(basename($site->{nginx}{dir}) . '/nginx.conf', conf($site, %is));
    return $site;
}

subtest 'a restart' => sub {
    my $site = site();
    my ($status, $output) = $t->nginx_t(conf($site));
    is($status, 0, 'nginx -t') or diag($output);
    ok(!-e $site->{state}, 'makes no folder');
    up($site);
    folder_is($site, 0700, 'the folder is made');
    is_deeply([files($site)], [], 'empty');

    my @all = ('127.0.0.1:1', '127.0.0.1:2 weight=0',
        '127.0.0.1:3 weight=65535 max_fails=0 fail_timeout=0 max_conns=2147483647', '127.0.0.1:4 backup',
        '127.0.0.1:5 down', '127.0.0.1:6 weight=3 max_fails=2147483647 fail_timeout=1h max_conns=7 backup down',
        '[::1]:7', '[2001:DB8::0:1]:80', 'unix:/run/app.sock', '127.0.0.1');
    post_ok($site, 'run-time', @served);
    post_ok($site, 'everything', @all);
    post_ok($site, 'page', @served);
    post_ok($site, 'emptied', $servers[0]);
    post_ok($site, 'back', $servers[0]);
    post_ok($site, $_, $servers[0]) for 'Node-Dev.Upyun.COM:8080', 'a::b', ':', '...', '-', '_', $long;
    # Of this name and the one before it the files' names differ in their hash only.
    post_ok($site, substr($long, 1) . '_', $servers[1]);
    post_ok($site, 'localhost', 'localhost:1');
    post_ok($site, 'group', 'upstream:page weight=7');
    answered($site, 'POST', '/upstream/cluster', json_text($servers[0], $servers[1]));
    post_ok($site, 'single', $servers[0]);
    answered($site, 'POST', '/upstream/single/server', "server $servers[1];");
    answered($site, 'POST', '/upstream/single/server', "server $servers[2];");
    answered($site, 'PATCH', "/upstream/single/server/$servers[1]", 'weight=9 down');
    answered($site, 'DELETE', "/upstream/single/server/$servers[0]");
    answered($site, 'DELETE', '/upstream/gone');
    answered($site, 'DELETE', '/upstream/emptied');
    answered($site, 'POST', '/upstream/back/reset');
    post_ok($site, 'again', $servers[2]);
    answered($site, 'DELETE', '/upstream/again');
    post_ok($site, 'again', $servers[0]);

    my @files = map { "$_.conf" } qw(run-time everything page gone node-dev.upyun.com:8080 a::b : ... - _ localhost
        group cluster single again);
    my @hashed = grep { /^l{199}[l_]?~[0-9a-f]{16}\.conf$/ } files($site);
    is(@hashed, 2, 'names too long for a file have a hash');
    is_deeply([files($site)], [sort @files, @hashed], 'a file for each list, of an upstream without servers too');
    is(slurp($site, 'run-time.conf'), <<"EOF", 'in the syntax of nginx');
upstream run-time {
    server $servers[0] weight=1 max_fails=1 fail_timeout=10s;
    server $servers[1] weight=2 max_fails=1 fail_timeout=10s;
}
EOF
    is(slurp($site, 'gone.conf'), "upstream gone {\n}\n", 'one without servers');
    my ($read, $why) = $t->nginx_t("pid nginx.pid;\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n"
        . "include $site->{state}/run-time.conf;\n}\n");
    is($read, 0, 'nginx includes it') or diag($why);
    for my $file (files($site)) {
        my @stat = stat "$site->{state}/$file";
        is(sprintf('%04o %d %d', S_IMODE($stat[2]), @stat[4, 5]), "0600 $uid $gid", "mode and owner of $file");
    }

    my ($before, $text) = (lists($site), detail($site));
    is($before->{page}{source}, 'api', 'a posted list is of the api');
    is($before->{back}{source}, 'config', 'one that was reset of nginx.conf');
    is($before->{single}{version}, 5, 'the version counts');
    is(scalar @{ $before->{everything}{servers} }, 10, 'ten servers');
    my %inodes = map { $_ => (stat "$site->{state}/$_")[1] } files($site);
    for my $round (1, 2) {
        my $start = time;
        my $mark = $site->{nginx}->log_mark;
        $site->{nginx}->stop;
        up($site);
        my $after = lists($site);
        is(detail($site), $text, 'the same lists');
        for my $name (sort keys %$before) {
            my $is_api = $before->{$name}{source} eq 'api';
            is($after->{$name}{source}, $before->{$name}{source}, "the same source of $name");
            is($after->{$name}{version}, $is_api ? 1 : 0, 'the version counts from the start');
            is(names(@{ $after->{$name}{servers} }), names(@{ $before->{$name}{servers} }), 'the same servers');
        }
        like($after->{page}{since}, qr/^\d{4}-\d\d-\d\dT/, 'since some time');
        is_deeply({ map { $_ => (stat "$site->{state}/$_")[1] } files($site) }, \%inodes, 'a start writes nothing');
        my $count = @files + 2;
        like($site->{nginx}->log($mark), qr/\[notice\].*upsync: $count of $count lists of "dyups_state_path" in force$/m, 'said');
        unlike($site->{nginx}->log($mark), qr/\[(?:warn|error)\].*upsync/, 'nothing is wrong');

        serves($site, $_, @servers[ 0, 1 ]) for qw(run-time page);
        serves($site, $_, $servers[0]) for 'Node-DEV.upyun.com:8080', $long, 'again';
        serves($site, 'back', $servers[3]);
        is($_->{status}, 502, 'deleted') for from_each($site, '/', headers => { 'X-Name' => 'gone' });
        is($_->{status}, 404, 'nothing to show') for from_each($site, '/api/upstream/gone');
        unlike($text, qr/^(?:gone|emptied)$/m, 'and not listed');
    }

    answered($site, 'POST', '/upstream/gone/reset');
    answered($site, 'DELETE', '/upstream/run-time');
    post_ok($site, 'page', $servers[2]);
    ok(!-e "$site->{state}/$_", "$_ goes") for 'gone.conf', 'run-time.conf';
    is(json(get($site, '/api/upstream/page?format=json')->{body})->{version}, 2, 'a version later');
    $site->{nginx}->stop;
    up($site);
    serves($site, 'gone', $servers[3]);
    serves($site, 'page', $servers[2]);
    is(get($site, '/api/upstream/run-time')->{status}, 404, 'a name that was deleted does not come back');
    $site->{nginx}->stop;
};

subtest 'nginx -t touches nothing' => sub {
    my $site = site();
    mkdir $site->{state}, 0755 or die "$site->{state}: $!\n";
    chmod 0755, $site->{state};
    write_state($site, 'a.conf', 'broken');
    write_state($site, 'a.conf.4194303.tmp', 'left');
    my @before = stat $site->{state};
    my ($status, $output) = $t->nginx_t(conf($site));
    is($status, 0, 'nginx -t') or diag($output);
    is_deeply([files($site)], ['a.conf', 'a.conf.4194303.tmp'], 'the same files');
    is_deeply([(stat $site->{state})[2, 4, 5, 9, 10]], [@before[2, 4, 5, 9, 10]], 'the same mode, owner and times');
    unlike($output, qr/upsync/, 'nothing is said');
};

subtest 'a configuration that is refused touches nothing' => sub {
    my $site = site();
    up($site);
    post_ok($site, 'page', @served);
    configure($site, state => "$dir/refused", upstreams => 'nonsense;');
    ok($site->{nginx}->reload(fails => 1), 'refused');
    ok(!-e "$dir/refused", 'no folder is made');
    post_ok($site, 'page', $servers[0]);
    like(slurp($site, 'page.conf'), qr/\Q$servers[0]\E/, 'the one before is still in use');
    $site->{nginx}->stop;
};

subtest 'the whole of nginx killed right after a 200' => sub {
    my $site = site();
    up($site);
    my %lists = map { ($_ => [$servers[3]]) } qw(page gone back);
    my $lost = 0;
    for my $time (1 .. $times) {
        my $name = ('same', "new$time", 'page', 'Ho.st:80', 'gone')[$time % 5];
        my @list = map { "127.0.0.$_:$time weight=" . (1 + int rand 9) } 1 .. 1 + int rand 4;
        @list = map { "127.0.$_." . ($time % 250) . ":80" } 1 .. 250 if $time % 7 == 0;
        my ($method, $body) = $time % 5 == 4 && $time % 10 == 9 ? ('DELETE') : ('POST', body(@list));
        my $answer = http($method, $site->{port}, "/api/upstream/$name", body => $body);
        my @pids = kill_whole($site);
        $answer->{body} eq 'success' or fail("$method $name: $answer->{status} $answer->{body}");
        ended($site, @pids);
        $lists{lc $name} = $method eq 'POST' ? \@list : [];
        up($site);
        $lost++ unless same_lists($site, \%lists);
    }
    is($lost, 0, "$times times the list was there");
    is_deeply([grep { !/^[^~]+\.conf$/ } files($site)], [], 'and nothing else');
    $site->{nginx}->stop;
};

subtest 'the whole of nginx killed in the middle' => sub {
    my $site = site();
    up($site);
    my @names = map { "middle$_" } 0 .. 5;
    my $list = sub {
        my ($name, $time) = @_;
        my $number = $name =~ /[0-2]$/ ? 3 : 3000;
        return map { '127.' . ($_ >> 8) . '.' . ($_ & 255) . ".1:$time" } 1 .. $number;
    };
    my %old = map { ($_ => [$list->($_, 65535)]) } @names;
    my $took = 0;
    for my $name (@names) {
        my $start = time;
        post_ok($site, $name, @{ $old{$name} });
        $took = time - $start if time - $start > $took;
    }
    my %came = (old => 0, new => 0, answered => 0);
    my (@wrong, @left);
    for my $time (1 .. $times) {
        my %new = map { ($_ => [$list->($_, $time)]) } @names;
        # Every third time one is deleted; next time it is made again.
        $new{ $names[ $time % @names ] } = [] if $time % 3 == 0;
        my (%connections, %answered);
        for my $name (@names) {
            my $body = @{ $new{$name} } ? body(@{ $new{$name} }) : '';
            my $method = $body ? 'POST' : 'DELETE';
            my $connection = $connections{$name} = http_connect($site->{port});
            $connection->send("$method /api/upstream/$name HTTP/1.1\r\nHost: a\r\nContent-Length: "
                . length($body) . "\r\n\r\n$body");
        }
        sleep rand $took;
        ended($site, kill_whole($site));
        $answered{$_} = $connections{$_}->receive('POST', 5)->{body} eq 'success' for @names;
        # Of processes that init has not asked about yet: they are alive for nginx, too.
        my %kept = map { $_ => 1 } grep { is_of_process($_) } files($site);
        up($site);
        push @left, grep { !/^middle\d\.conf$/ && !$kept{$_} } files($site);
        for my $name (@names) {
            my $now = join ' ', get($site, "/api/upstream/$name")->{body} =~ /^server (\S+)$/mg;
            my ($was, $is) = ("@{ $old{$name} }", "@{ $new{$name} }");
            my $which = $now eq $is ? 'new' : $now eq $was && !$answered{$name} ? 'old' : 'neither';
            push @wrong, "$name, time $time: " . length($now) . ' bytes' if $which eq 'neither';
            $came{$which}++;
            $came{answered}++ if $answered{$name};
            $old{$name} = $which eq 'new' ? $new{$name} : $old{$name};
        }
    }
    is_deeply(\@wrong, [], 'each list is the old or the new one, and the new one if that was answered');
    is_deeply(\@left, [], 'nothing is left half done');
    wait_until { !grep { is_of_process($_) } files($site) } 5;
    $site->{nginx}->stop;
    up($site);
    is_deeply([grep { !/^middle\d\.conf$/ && !is_of_process($_) } files($site)], [], 'nothing at all');
    unlike($site->{nginx}->log, qr/skipped/, 'no file is damaged');
    note sprintf 'a POST takes up to %.1f ms; %d lists were old, %d new, %d of them answered', $took * 1000,
        @came{qw(old new answered)};
    $site->{nginx}->stop;
};

subtest 'files that are not as they should be' => sub {
    my $site = site();
    up($site);
    post_ok($site, $_, @served) for qw(truncated good page);
    $site->{nginx}->stop;
    my $good = slurp($site, 'truncated.conf');
    my %damaged = (
        truncated => [substr($good, 0, length($good) - 20), 'line 3, column ' . (5 + length "server $servers[1] weight=2 ") . ': unexpected end after "max_fails=1", expected ";"'],
        unclosed => ["upstream unclosed {\n    server 127.0.0.1:1;\n", 'line 2, column 23: unexpected end after ";", expected "server", a method, "check" or "}"'],
        empty => ['', 'line 1, column 1: unexpected end, expected "upstream"'],
        zeros => ["\0" x 4096, 'line 1, column 1: unexpected byte 0x00, expected text without control characters'],
        binary => ["upstream binary {\n    server 127.0.0.1:1;\n\x{ff}\n}\n", 'line 3, column 1: unexpected byte 0xff, expected UTF-8'],
        foreign => ["upstream other {\n    server 127.0.0.1:1;\n}\n", 'the upstream "other" belongs into "other.conf"'],
        UPPER => ["upstream UPPER {\n    server 127.0.0.1:1;\n}\n", 'the upstream "upper" belongs into "upper.conf"'],
        twice => ["upstream twice {\n    server 127.0.0.1:1;\n}\nupstream twice {\n}\n", 'line 4, column 1: unexpected "upstream", expected nothing after "}"'],
        weight => ["upstream weight {\n    server 127.0.0.1:1;\n    server 127.0.0.1:2 weight=many;\n}\n", 'line 3, column 24: invalid value in "weight=many", expected 0 to 65535'],
        unknown => ["upstream unknown {\n    server 127.0.0.1:1 sloe_start=3s;\n}\n", 'line 2, column 24: unknown parameter "sloe_start=3s", expected weight=N, max_fails=N, fail_timeout=TIME, max_conns=N, slow_start=TIME, backup, drain or down'],
        include => ["upstream include {\n    include /etc/passwd;\n}\n", 'line 2, column 5: unexpected "include", expected "server", a method, "check" or "}"'],
        host => ["upstream host {\n    server app.example.com:80;\n}\n", 'line 2, column 12: expected an address, not the name "app.example.com:80"'],
        named => ["upstream na/med {\n}\n", 'line 1, column 10: "na/med": invalid upstream name, expected 1 to 255 letters, digits, ".", "-", "_" or ":"'],
        directory => [undef, 'not a regular file'],
        fifo => [undef, 'not a regular file'],
        link => [undef, 'not a regular file'],
        socket => [undef, 'not a regular file'],
        unreadable => ["upstream unreadable {\n}\n", 'Permission denied (os error 13)'],
    );
    delete $damaged{unreadable} if $> == 0;
    write_state($site, "$_.conf", $damaged{$_}[0]) for grep { defined $damaged{$_}[0] } keys %damaged;
    chmod 0, "$site->{state}/unreadable.conf";
    mkdir "$site->{state}/directory.conf" or die "directory: $!\n";
    mkfifo("$site->{state}/fifo.conf", 0600) or die "fifo: $!\n";
    $t->write_file('link', "upstream link {\n    server 127.0.0.1:1;\n}\n");
    symlink "$dir/link", "$site->{state}/link.conf" or die "link: $!\n";
    my $socket = IO::Socket::UNIX->new(Local => "$site->{state}/socket.conf", Listen => 1);
    delete $damaged{socket} unless $socket;
    write_state($site, "\e[2J.conf", 'x');
    # A file that somebody has edited.
    write_state($site, 'good.conf', "# by hand\nupstream Good {   # and so on\r\n\tserver $servers[0]\n weight=2; server\n$servers[1];}");
    write_state($site, 'notes.txt', 'a note');
    write_state($site, "good.conf.$_.tmp", 'half a') for 4194303, '4194303-7', $$;
    my @files = files($site);

    my $mark = $site->{nginx}->log_mark;
    up($site);
    my $log = $site->{nginx}->log($mark);
    my %said = $log =~ /\[error\] \S+ upsync: "\Q$site->{state}\E\/([^"]+)\.conf" of "dyups_state_path": (.*), skipped$/mg;
    my $escape = delete $said{'\\u{1b}[2J'};
    is($said{$_}, $damaged{$_}[1], "$_ is told") for sort keys %damaged;
    is_deeply([sort keys %said], [sort keys %damaged], 'and no other');
    like($escape // '', qr/^line 1, column 1: unexpected "x"/, 'nothing that moves a cursor is in the log');
    like($log, qr/\[notice\].*upsync: 2 of 2 lists of "dyups_state_path" in force$/m, 'the rest is in force');
    serves($site, $_, @servers[ 0, 1 ]) for qw(good page);
    is(get($site, '/api/list')->{body}, "page\ngone\nback\ngood\n", 'and listed');
    is_deeply([files($site)], [grep { !/4194303/ } @files], 'temporary files of nobody are removed, all others stay');
    is(slurp($site, 'truncated.conf'), $damaged{truncated}[0], 'as they were');

    my @names = grep { !/directory|named|UPPER/ } sort keys %damaged;
    post_ok($site, $_, @served) for @names;
    answered($site, 'DELETE', '/upstream/fifo');
    ok(!-l "$site->{state}/link.conf", 'a link is replaced');
    is($t->read_file('link'), "upstream link {\n    server 127.0.0.1:1;\n}\n", 'but what it leads to stays');
    my $answer = post($site, 'directory', $servers[0]);
    is($answer->{status}, 500, 'a directory is in the way');
    like($answer->{body}, qr/^alert: update success but not saved: \S.*$/, 'which is said');
    is(get($site, '/api/upstream/directory')->{body}, "server $servers[0]\n", 'the list is in force, as it says');
    is_deeply([grep { /tmp$/ } files($site)], ["good.conf.$$.tmp"], 'nothing is left half done');

    rmdir "$site->{state}/directory.conf";
    unlink map { "$site->{state}/$_.conf" } "\e[2J", 'UPPER', 'named', "good.conf.$$.tmp";
    $mark = $site->{nginx}->log_mark;
    $site->{nginx}->stop;
    up($site);
    unlike($site->{nginx}->log($mark), qr/skipped/, 'all is well again');
    serves($site, $_, @servers[ 0, 1 ]) for grep { $_ ne 'fifo' } @names;
    $site->{nginx}->stop;

    write_state($site, "broken$_.conf", 'x') for 1 .. 30;
    $mark = $site->{nginx}->log_mark;
    up($site);
    my @lines = $site->{nginx}->log($mark) =~ /(upsync: .* skipped)$/mg;
    is(@lines, 21, 'many are told in few lines');
    is($lines[-1], 'upsync: 10 more files skipped', 'the rest by number');
    serves($site, 'good', @servers[ 0, 1 ]);
    $site->{nginx}->stop;
};

subtest 'a folder that cannot be used' => sub {
    mkdir "$dir/real" or die "real: $!\n";
    symlink "$dir/real", "$dir/link-to-it" or die "link: $!\n";
    $t->write_file('a-file', 'x');
    my %why = ("$dir/no/such" => 'No such file or directory', "$dir/a-file" => 'not a folder',
        "$dir/link-to-it" => 'not a folder', "$dir/link-to-it/" => 'not a folder');
    for my $path (sort keys %why) {
        my $site = site(state => $path);
        up($site);
        like($site->{nginx}->log, qr/\[error\] \S+ upsync: cannot use "\Q$path\E" of "dyups_state_path": \Q$why{$path}\E/,
            "$path is told, and nginx starts");
        nothing_changes($site);
        is_deeply([glob "$dir/real/*"], [], 'nor is anything written');
        unlink "$dir/no" if mkdir "$dir/no", 0777;
        $site->{nginx}->stop;
        rmdir "$dir/no";
    }

    my $site = site(state => "$dir/no/such");
    up($site);
    mkdir "$dir/no" or die "no: $!\n";
    ok($site->{nginx}->reload, 'a reload makes the folder as soon as it can');
    is(sprintf('%04o', S_IMODE((stat "$dir/no/such")[2])), '0700', 'made');
    post_ok($site, 'page', @served);
    $site->{nginx}->stop;
};

subtest 'a folder that workers cannot write to' => sub {
    my $site = site();
    mkdir $site->{state} or die "$site->{state}: $!\n";
    chmod $> == 0 ? 0755 : 0555, $site->{state};
    up($site);
    my $mode = $> == 0 ? '0755' : '0555';
    like($site->{nginx}->log, qr/\[warn\] \S+ upsync: "\Q$site->{state}\E" of "dyups_state_path" has the mode $mode, expected 0700$/m,
        'others can read it');
    like($site->{nginx}->log, qr/\[warn\] \S+ upsync: workers cannot make files in "\Q$site->{state}\E" of "dyups_state_path", /,
        'workers cannot write it');
    nothing_changes($site);
    is(sprintf('%04o', S_IMODE((stat $site->{state})[2])), $mode, 'the mode stays');
    chown $uid, $gid, $site->{state} if $> == 0;
    chmod 0700, $site->{state};
    post_ok($site, $_, @served) for qw(page mine);

    chmod 0500, $site->{state};
    nothing_changes($site);
    my $answer = http('DELETE', $site->{port}, '/api/upstream/mine');
    is($answer->{status}, 500, 'nor can a file be removed');
    like($answer->{body}, qr/^save failed: Permission denied .*, nothing has changed$/, 'which is said');
    is(get($site, '/api/upstream/mine')->{status}, 200, 'the name is there, as it says');
    chmod 0700, $site->{state};
    answered($site, 'DELETE', '/upstream/mine');
    is_deeply([files($site)], ['page.conf'], 'the next change is on disk');

    # As a worker leaves it that is killed before the file is gone.
    write_state($site, 'mine.conf', "upstream mine {\n    server $servers[0];\n}\n");
    is(http('DELETE', $site->{port}, '/api/upstream/mine')->{status}, 404, 'a name that is gone already');
    is_deeply([files($site)], ['page.conf'], 'has no file after that');
    $site->{nginx}->stop;
};

# Of two that run at once, as during a binary upgrade, the later has read the files.
subtest 'a folder has one nginx' => sub {
    my ($first, $second) = (site(), site());
    up($first);
    post_ok($first, 'page', @served);
    configure($second, state => $first->{state});
    $second->{nginx}->start;
    wait_until { get($second, '/api/list')->{status} == 200 } 10, 'another starts on it';
    serves($second, 'page', @servers[ 0, 1 ]);
    my $pid = $second->{nginx}->pid;
    for (from_each($first, '/api/list')) {
        my $answer = post($first, 'page', $servers[2]);
        is("$answer->{status} $answer->{body}", qq{503 nginx of process $pid has "dyups_state_path" now, ask that one},
            'the first makes no changes');
    }
    serves($first, 'page', @servers[ 0, 1 ]);
    post_ok($second, 'page', $servers[3]);
    $second->{nginx}->stop;
    post_ok($first, 'mine', $servers[3]);
    pass('until the other ends');
    $first->{nginx}->stop;
};

subtest 'what the system is asked for' => sub {
    my $site = site();
    up($site);
    my ($worker) = $site->{nginx}->workers;
    # It goes on until it is stopped, unless it may not.
    my $status = system "timeout 0.5 strace -o /dev/null -p $worker >/dev/null 2>&1";
    $site->{nginx}->stop, plan(skip_all => 'no strace') if $status >> 8 != 124;
    my @workers = $site->{nginx}->workers;
    my $end = traced($site, 'openat,write,fsync,fdatasync,/^rename,/^unlink,writev,/^send');
    post_ok($site, 'traced', @served);
    answered($site, 'DELETE', '/upstream/traced');
    post_ok($site, 'page', @served);
    my @calls = $end->();
    my $file = quotemeta "$site->{state}/traced.conf";
    my $folder = quotemeta $site->{state};
    my $temporary = qr/$file\.\d+\.tmp/;
    my @expected = (
        ['a new file' => qr/^openat\(.*"$temporary", O_\w+\|O_CREAT\|O_EXCL/],
        ['is written' => qr/^write\(\d+<$temporary>, "upstream traced \{/],
        ['and on disk' => qr/^f(?:data)?sync\(\d+<$temporary>\) += 0$/],
        ['before it takes its place' => qr/^rename(?:at2?)?\(.*"$temporary",.* "$file"(?:, 0)?\) += 0$/],
        ['the folder is on disk' => qr/^fsync\(\d+<$folder>\) += 0$/],
        ['before the answer' => undef],
        ['a file is put aside' => qr/^rename(?:at2?)?\(.*"$file",.* "$temporary"(?:, 0)?\) += 0$/],
        ['and removed' => qr/^unlink(?:at)?\(.*"$temporary"(?:, 0)?\) += 0$/],
        ['the folder is on disk' => qr/^fsync\(\d+<$folder>\) += 0$/],
        ['before the answer' => undef],
    );
    my $at = 0;
    my @answers = grep { $_->{text} =~ /HTTP\/1\.1 200 OK.*"success"/ } @calls;
    for (@expected) {
        my ($name, $regex) = @$_;
        my ($found) = $regex ? grep({ $_->{text} =~ $regex && $_->{started} >= $at } @calls) : shift @answers;
        ok($found && $found->{started} >= $at, $name) or last;
        $at = $found->{ended};
    }
    diag(map { "$_->{thread} $_->{text}\n" } @calls) unless Test::More->builder->is_passing;
    my @slow = grep { $_->{text} =~ /^(?:f(?:data)?sync|rename|unlink)/ && $_->{text} =~ /$folder/ } @calls;
    cmp_ok(@slow, '>=', 8, 'calls that may take their time');
    is(scalar(grep { my $thread = $_->{thread}; grep { $_ == $thread } @workers } @slow), 0,
        'are not made by the threads that serve requests');

    my $before = slurp($site, 'page.conf');
    my $list = detail($site);
    # Each change has a thread of its own: its first fsync is the file's, its second the folder's.
    $end = traced($site, 'fsync,writev', 'fsync:error=EIO:when=1');
    my $answer = post($site, 'page', $servers[2]);
    is("$answer->{status} $answer->{body}", '500 save failed: Input/output error (os error 5), nothing has changed', 'a bad disk');
    is(detail($site), $list, 'the same list');
    $end->();
    is_deeply([files($site)], ['page.conf'], 'nothing is left half done');
    is(slurp($site, 'page.conf'), $before, 'the same file');
    like($site->{nginx}->log, qr/\[error\].*upsync: upstream "page": cannot write to "dyups_state_path": Input\/output error/, 'said');

    for (['/^rename,writev', '/^rename:error=EIO', $before], ['fsync,writev', 'fsync:error=EIO:when=2', undef]) {
        my ($calls, $inject, $text) = @$_;
        $end = traced($site, $calls, $inject);
        my $answer = post($site, 'page', $servers[2]);
        is("$answer->{status} $answer->{body}",
            '500 alert: update success but not saved: Input/output error (os error 5)', "later: $inject");
        $end->();
        is(get($site, '/api/upstream/page')->{body}, "server $servers[2]\n", 'the list is in force');
        is_deeply([files($site)], ['page.conf'], 'nothing is left half done');
        is(slurp($site, 'page.conf'), $text, 'the file is the old one') if $text;
        post_ok($site, 'page', @served);
        is(slurp($site, 'page.conf'), $before, 'the next change is on disk');
    }
    $site->{nginx}->stop;
};

subtest 'a slow disk' => sub {
    my $site = site();
    up($site);
    post_ok($site, 'page', $servers[0]);
    my @workers = $site->{nginx}->workers;

    my $held = held($site);
    # More than a worker has threads for.
    my @waiting = map { my $pid = $_; map { waiting_post($site, $pid, "$pid-$_", @served) } 1 .. 40 } @workers;
    is(@waiting, 80, 'so many changes wait');
    for my $pid (@workers) {
        my $connection = connection_to($site, $pid);
        my (%statuses, $slowest);
        $slowest = 0;
        for my $number (1 .. 200) {
            my $start = time;
            my $uri = $number % 2 ? '/' : '/api/upstream/page';
            my $answer = http_get(0, $uri, connection => $connection, headers => { 'X-Name' => 'page' });
            $statuses{"$answer->{headers}{'x-pid'} $answer->{status}"}++;
            $slowest = time - $start if time - $start > $slowest;
        }
        is_deeply(\%statuses, { "$pid 200" => 200 }, 'requests of the same worker are served');
        note sprintf 'the slowest took %.1f ms', $slowest * 1000;
    }
    is(scalar(my @ready = IO::Select->new(map { $_->{socket} } @waiting)->can_read(0)), 0, 'while none of the changes is answered');
    is(get($site, '/api/list')->{body}, "page\ngone\nback\n", 'nor in force');
    close $held;
    is(join(' ', map { $_->receive('POST', 20)->{body} } @waiting), join(' ', ('success') x 80), 'now all are');
    is(scalar(() = get($site, '/api/list')->{body} =~ /^\d+-\d+$/mg), 80, 'and in force');
    is(scalar(grep { /^\d+-\d+\.conf$/ } files($site)), 80, 'and on disk');

    $held = held($site);
    my $killed = waiting_post($site, $workers[0], 'killed', @served);
    my $other = waiting_post($site, $workers[1], 'other', @served);
    $site->{nginx}->kill_worker($workers[0]);
    close $held;
    is($other->receive('POST', 20)->{body}, 'success', 'a killed worker holds up no other');
    is($killed->receive('POST', 20)->{status}, 0, 'its own change is not answered');
    is(get($site, '/api/upstream/killed')->{status}, 404, 'nor made');

    $held = held($site);
    @workers = $site->{nginx}->workers;
    @waiting = map { waiting_post($site, $_, "old-$_", @served) } @workers;
    ok($site->{nginx}->reload, 'a reload meanwhile');
    is(names($site->{nginx}->old_workers), names(@workers), 'both old workers are still there');
    is(get($site, '/api/upstream/page')->{body}, "server $servers[0]\n", 'new ones serve');
    close $held;
    for my $waiting (@waiting) {
        my $answer = $waiting->receive('POST', 20);
        is("$answer->{status} $answer->{body}", '200 success', 'an old worker finishes what it began');
        $waiting->close;
    }
    wait_until { !$site->{nginx}->old_workers } 10, 'and goes';
    serves($site, "old-$_", @servers[ 0, 1 ]) for @workers;
    ok(-e "$site->{state}/old-$_.conf", 'on disk too') for @workers;

    $held = held($site);
    my ($worker) = $site->{nginx}->workers;
    my $waiting = waiting_post($site, $worker, 'page', @served);
    $site->{nginx}->signal('QUIT');
    wait_until { grep { $_ == $worker } $site->{nginx}->old_workers } 10, 'told to quit';
    close $held;
    is($waiting->receive('POST', 20)->{body}, 'success', 'it is answered');
    $waiting->close;
    is($site->{nginx}->exited(10), 0, 'and nginx ends');
    up($site);
    serves($site, 'page', @servers[ 0, 1 ]);

    $held = held($site);
    $waiting = waiting_post($site, ($site->{nginx}->workers)[0], 'page', $servers[2]);
    ok($site->{nginx}->stop('TERM'), 'told to end at once, nginx does');
    is($waiting->receive('POST', 5)->{status}, 0, 'without an answer');
    close $held;
    up($site);
    serves($site, 'page', @servers[ 0, 1 ]);
    $site->{nginx}->stop;
};

subtest 'a zone of another size' => sub {
    my $site = site();
    up($site);
    post_ok($site, $_, @served) for 'page', 'mine';
    answered($site, 'DELETE', '/upstream/gone');
    post_ok($site, 'back', $servers[0]);
    answered($site, 'POST', '/upstream/back/reset');
    my $before = detail($site);
    for my $zone ('8m', '1m') {
        configure($site, zone => $zone);
        my $mark = $site->{nginx}->log_mark;
        ok($site->{nginx}->reload, "zone of $zone");
        is(detail($site), $before, 'the same lists');
        serves($site, 'mine', @servers[ 0, 1 ]);
        serves($site, 'back', $servers[3]);
        is($_->{status}, 502, 'deleted') for from_each($site, '/', headers => { 'X-Name' => 'gone' });
        unlike($site->{nginx}->log($mark), qr/\[(?:warn|error)\] \S+ upsync/, 'nothing is wrong');
    }
    post_ok($site, 'later', $servers[0]);
    $before = detail($site);
    $site->{nginx}->stop;
    up($site);
    is(detail($site), $before, 'and after a restart');

    # The old worker has the old zone only.
    my ($worker) = $site->{nginx}->workers;
    my $held = held($site);
    my $waiting = waiting_post($site, $worker, 'later', $servers[1]);
    configure($site, zone => '3m');
    ok($site->{nginx}->reload, 'another size, while a change waits');
    close $held;
    my $answer = $waiting->receive('POST', 20);
    $waiting->close;
    wait_until { !$site->{nginx}->old_workers } 10, 'the old workers go';
    my $expected = $answer->{status} == 200 ? $servers[1] : $servers[0];
    note "answered $answer->{status} $answer->{body}";
    is($_->{body}, "server $expected\n", 'the list is what was answered') for from_each($site, '/api/upstream/later');
    like(slurp($site, 'later.conf'), qr/server \Q$expected\E /, 'the file too');

    my ($last, $number, %statuses) = ($expected, 0);
    for my $zone (map { ('2m', '5m') } 1 .. $times / 4) {
        my %old = map { $_ => 1 } $site->{nginx}->workers;
        configure($site, zone => $zone);
        $site->{nginx}->signal('HUP');
        my $is_done = wait_until {
            my $server = '127.0.0.1:' . (1 + $number++);
            $answer = post($site, 'later', $server);
            $statuses{ $answer->{status} }++;
            $last = $server if $answer->{status} == 200;
            !grep { $old{$_} } $site->{nginx}->workers;
        } 10;
        ok($is_done, "zone of $zone");
        # A connection of an old worker that waited to be accepted.
        delete $statuses{0};
        is($_->{body}, "server $last\n", 'the last list that was answered') for from_each($site, '/api/upstream/later');
    }
    is(join(' ', grep { !/^(?:200|503)$/ } keys %statuses), '', 'changes are made or refused');
    note join ', ', map { "$_: $statuses{$_}" } sort keys %statuses;
    like(slurp($site, 'later.conf'), qr/server \Q$last\E /, 'the file has it');
    $site->{nginx}->stop;
};

subtest 'the directive comes and goes' => sub {
    my $site = site(state => undef);
    up($site);
    ok(!-e $site->{state}, 'no folder');
    post_ok($site, $_, @served) for qw(page early same);
    answered($site, 'DELETE', '/upstream/gone');
    my $before = detail($site);
    ok($site->{nginx}->reload, 'a reload without it');
    is(detail($site), $before, 'the lists stay');

    mkdir $site->{state}, 0700 or die "$site->{state}: $!\n";
    chown $uid, $gid, $site->{state} if $> == 0;
    write_state($site, 'filed.conf', "upstream filed {\n    server $servers[2];\n}\n");
    write_state($site, 'early.conf', "upstream early {\n    server $servers[2];\n}\n");
    configure($site);
    ok($site->{nginx}->reload, 'it comes');
    serves($site, 'filed', $servers[2]);
    serves($site, $_, @servers[ 0, 1 ]) for qw(page early same);
    is($_->{status}, 502, 'what was deleted stays so') for from_each($site, '/', headers => { 'X-Name' => 'gone' });
    post_ok($site, 'same', @served);
    is_deeply([files($site)], [qw(early.conf filed.conf gone.conf page.conf same.conf)], 'all lists have files');
    like(slurp($site, 'early.conf'), qr/server \Q$servers[0]\E /, 'what is in memory counts more than an older file');
    post_ok($site, 'page', $servers[0]);
    write_state($site, 'late.conf', "upstream late {\n    server $servers[2];\n}\n");
    ok($site->{nginx}->reload, 'another reload');
    is(get($site, '/api/upstream/late')->{status}, 404, 'reads no files: they are read once');

    configure($site, state => undef);
    ok($site->{nginx}->reload, 'it goes');
    serves($site, 'page', $servers[0]);
    serves($site, 'filed', $servers[2]);
    my @files = files($site);
    post_ok($site, 'page', $servers[1]);
    answered($site, 'DELETE', '/upstream/same');
    is_deeply([files($site)], \@files, 'nothing is written');
    like(slurp($site, 'page.conf'), qr/\Q$servers[0]\E/, 'nothing at all');

    configure($site);
    ok($site->{nginx}->reload, 'it is back, and files are read again');
    serves($site, 'page', $servers[1]);
    serves($site, 'late', $servers[2]);
    # Nobody told the folder that it was deleted.
    serves($site, 'same', @servers[ 0, 1 ]);
    like(slurp($site, 'page.conf'), qr/\Q$servers[1]\E/, 'a list in memory counts more than its file');
    $site->{nginx}->stop;
    up($site);
    serves($site, 'page', $servers[1]);
    pass('a list that was posted since is there after a restart');
    serves($site, 'early', @servers[ 0, 1 ]);
    is($_->{status}, 502, 'what was deleted stays so') for from_each($site, '/', headers => { 'X-Name' => 'gone' });
    $site->{nginx}->stop;
};

subtest 'a block of nginx.conf goes and comes back' => sub {
    my $site = site();
    up($site);
    post_ok($site, 'page', @served);
    answered($site, 'DELETE', '/upstream/gone');
    my $restart = sub { $site->{nginx}->stop; up($site) };
    for my $again (sub { $site->{nginx}->reload }, $restart) {
        configure($site, upstreams => "upstream other { server $servers[3]; }");
        ok($again->(), 'without the blocks');
        serves($site, 'page', @servers[ 0, 1 ]);
        is(get($site, '/api/list')->{body}, "other\npage\n", 'a list with servers is one of a name made at run time');
        is_deeply([files($site)], ['page.conf'], 'what was deleted has no file');
        configure($site);
        ok($again->(), 'with them');
        serves($site, 'page', @servers[ 0, 1 ]);
        serves($site, 'gone', $servers[3]);
        answered($site, 'DELETE', '/upstream/gone');
    }
    $site->{nginx}->stop;
};

subtest 'an upstream that Consul feeds' => sub {
    my $site = site();
    my $followed = sub { "upsync @{[ $fake->address ]}/v1/kv/$_[0]/ upsync_type=consul upsync_interval=20ms;" };
    my $upstreams = sub {
        return join '', map { "upstream $_ { server $servers[3]; @{[ $_[0]{$_} // '' ]} }\n" } qw(page gone fed);
    };
    my $with = $upstreams->({ map { ($_ => $followed->($_)) } qw(page gone fed) });
    my $without = $upstreams->({ fed => $followed->('fed') });
    $fake->reply_kv(7, { "$_/$servers[2]" => '' }, path => "/v1/kv/$_/") for qw(page gone fed);
    configure($site, upstreams => $without);
    up($site);
    post_ok($site, 'page', @served);
    answered($site, 'DELETE', '/upstream/gone');
    my $answer = post($site, 'fed', @served);
    is($answer->{status}, 409, 'what Consul feeds is not posted to');
    is_deeply([files($site)], [qw(gone.conf page.conf)], 'nor has it a file');

    my $held = held($site);
    my ($worker) = $site->{nginx}->workers;
    my $waiting = waiting_post($site, $worker, 'page', $servers[1]);
    configure($site, upstreams => $with);
    ok($site->{nginx}->reload, 'upstreams get "upsync"');
    listed($site, $_, $servers[2], 'the list of Consul') for qw(page gone fed);
    close $held;
    $answer = $waiting->receive('POST', 20);
    $waiting->close;
    is($answer->{status}, 409, 'a change that an older worker is at is refused');
    serves($site, $_, $servers[2]) for qw(page gone fed);
    is(post($site, $_, @served)->{status}, 409, 'not posted to') for qw(page gone);
    is(json(get($site, "/api/upstream/$_?format=json")->{body})->{source}, 'consul', 'nor said to be') for qw(page gone);

    is_deeply([files($site)], [qw(gone.conf page.conf)], 'their files are left, as the lock was held');
    ok($site->{nginx}->reload, 'the next reload');
    is_deeply([files($site)], [], 'has them gone');
    $site->{nginx}->stop;
    write_state($site, 'page.conf', "upstream page {\n    server $servers[0];\n}\n");
    write_state($site, 'gone.conf', "upstream gone {\n}\n");
    $fake->reply_kv(8, { "$_/$servers[1]" => '' }, path => "/v1/kv/$_/") for qw(page gone fed);
    up($site);
    listed($site, $_, $servers[1], 'a restart: the list of Consul') for qw(page gone fed);
    serves($site, $_, $servers[1]) for qw(page gone fed);
    $fake->stop;
    $site->{nginx}->stop;
    up($site);
    serves($site, $_, $servers[3]) for qw(page gone fed);
    pass('without Consul the servers of nginx.conf, not those of the file');
    is_deeply([files($site)], [], 'which goes');

    $fake->run;
    $fake->reply_kv(9, { "$_/$servers[0]" => '' }, path => "/v1/kv/$_/") for qw(page gone fed);
    listed($site, $_, $servers[0], 'Consul is back') for qw(page gone fed);
    configure($site, upstreams => $upstreams->({}));
    ok($site->{nginx}->reload, 'upstreams lose "upsync"');
    serves($site, $_, $servers[3]) for qw(page gone fed);
    is(json(get($site, "/api/upstream/$_?format=json")->{body})->{source}, 'config', 'from nginx.conf') for qw(page gone fed);
    my $before = detail($site);
    $site->{nginx}->stop;
    up($site);
    is(detail($site), $before, 'a restart makes no difference');
    post_ok($site, $_, @served) for qw(page gone fed);
    serves($site, $_, @servers[ 0, 1 ]) for qw(page gone fed);
    $before = detail($site);
    $site->{nginx}->stop;
    up($site);
    is(detail($site), $before, 'what was posted since is there after a restart');
    $site->{nginx}->stop;
};

subtest 'a new binary' => sub {
    my $site = site();
    my $nginx = $site->{nginx};
    # In the foreground nginx takes no new binary while its parent is the one that started it.
    my $conf = $t->expand(conf($site)) =~ s/daemon off;/daemon on;/r;
    $t->write_file(basename($nginx->{dir}) . '/nginx.conf', $conf);
    my $pid_in = sub { my $text = slurp_file("$nginx->{dir}/$_[0]"); $text =~ /^(\d+)\n/ ? $1 : 0 };
    my $end = sub { kill 'QUIT', grep { $_ } map { $pid_in->($_) } 'nginx.pid', 'nginx.pid.oldbin' };
    system($nginx->command) == 0 or die 'nginx does not start: ' . $nginx->log;
    my $ok = eval {
        wait_until { workers_of($pid_in->('nginx.pid')) == 2 } 10, 'started';
        my $old = $pid_in->('nginx.pid');
        my @old = workers_of($old);
        post_ok($site, $_, @served) for qw(page mine Ho.st:80);
        answered($site, 'DELETE', '/upstream/gone');
        my $before = detail($site);

        kill 'USR2', $old;
        wait_until { $pid_in->('nginx.pid') && $pid_in->('nginx.pid') != $old } 10, 'a new binary';
        my $new = $pid_in->('nginx.pid');
        wait_until { workers_of($new) == 2 } 10, 'with workers';
        kill 'WINCH', $old;
        wait_until { gone(@old) } 10, 'the old workers go';
        is(detail($site), $before, 'the new ones have the lists');
        serves($site, $_, @servers[ 0, 1 ]) for qw(page mine Ho.st:80);
        is($_->{status}, 502, 'deleted') for from_each($site, '/', headers => { 'X-Name' => 'gone' });
        post_ok($site, 'new', @served);
        kill 'QUIT', $old;
        wait_until { gone($old) } 10, 'the old binary goes';
        post_ok($site, 'page', $servers[2]);
        $before = detail($site);
        kill 'HUP', $new;
        wait_until { !grep { $_ eq $pid_in->('nginx.pid') } $old } 10;
        is(detail($site), $before, 'a reload of the new one');
        1;
    };
    my $error = $@;
    my @left = map { ($_, workers_of($_)) } grep { $_ } map { $pid_in->($_) } 'nginx.pid', 'nginx.pid.oldbin';
    $end->();
    wait_until { gone(@left) } 10, 'all end';
    kill 'KILL', grep { !gone($_) } @left;
    die $error unless $ok;
};

$t->done;

# Servers as the body of a POST.
sub body { return join "\n", map { "server $_;" } @_ }

sub json_text {
    my @cluster = map { my ($host, $port) = split /:/; qq({"servers":[{"host":"$host","port":$port}]}) } @_;
    return '{"cluster":[' . join(',', @cluster) . ']}';
}

sub get { my ($site, $uri, %opt) = @_; return http_get($site->{port}, $uri, %opt) }

sub post { my ($site, $name, @list) = @_; return http('POST', $site->{port}, "/api/upstream/$name", body => body(@list)) }

sub post_ok {
    my ($site, $name, @list) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return answered($site, 'POST', "/upstream/$name", body(@list));
}

# A change that succeeds.
sub answered {
    my ($site, $method, $path, $body) = @_;
    my $answer = http($method, $site->{port}, "/api$path", body => $body);
    my $name = "$method " . (length $path > 60 ? substr($path, 0, 60) . '...' : $path);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return like("$answer->{status} $answer->{body}", qr/^200 (?:success|\{"status":200\})$/, $name);
}

# One answer of each worker.
sub from_each {
    my ($site, $uri, %opt) = @_;
    my %by_pid;
    for (1 .. 500) {
        my $answer = get($site, $uri, %opt);
        $by_pid{ $answer->{headers}{'x-pid'} // die "no answer: $answer->{error}\n" } //= $answer;
        last if keys %by_pid == 2;
    }
    return map { $by_pid{$_} } sort keys %by_pid;
}

# What all workers show.
sub detail {
    my $site = shift;
    my @texts = map { $_->{body} } from_each($site, '/api/detail');
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is($texts[1], $texts[0], 'both workers show the same');
    return $texts[0];
}

sub lists { return json(get($_[0], '/api/detail?format=json')->{body})->{upstreams} }

sub names { return join ' ', sort map { ref ? $_->{server} : $_ } @_ }

sub same_lists {
    my ($site, $lists) = @_;
    my $shown = lists($site);
    my $is = join "\n", map {
        "$_: " . join ' ', map { "$_->{server}=$_->{weight}" } @{ $shown->{$_}{servers} }
    } sort keys %$shown;
    my $expected = join "\n", map {
        "$_: " . join ' ', map { /^(\S+)(?: weight=(\d+))?/; "$1=" . ($2 // 1) } @{ $lists->{$_} }
    } grep { @{ $lists->{$_} } } sort keys %$lists;
    return $is eq $expected || is($is, $expected, 'lists') && 0;
}

# Requests of each worker go to these servers and no others.
sub serves {
    my ($site, $name, @expected) = @_;
    my (%pids, %seen);
    for (1 .. 500) {
        my $answer = get($site, '/', headers => { 'X-Name' => $name });
        my $by = $answer->{body} =~ /by (\S+)/ ? $1 : $answer->{status};
        $pids{ $answer->{headers}{'x-pid'} // '' }{$by} = $seen{$by} = 1;
        last if keys %pids == 2 && !grep { keys %$_ < @expected } values %pids;
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(names(keys %seen), names(@expected), "served: " . substr $name, 0, 30);
}

sub listed {
    my ($site, $name, $server, $text) = @_;
    my $body;
    wait_until { ($body = get($site, "/api/upstream/$name")->{body}) eq "server $server\n" } 10;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($body, "server $server\n", "$text: $name");
}

# Whatever is posted is refused, as it cannot be saved.
sub nothing_changes {
    my $site = shift;
    my ($before, @files) = (detail($site), files($site));
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    for (['POST', '/upstream/page', body($servers[2])], ['POST', '/upstream/other', body($servers[2])],
        ['DELETE', '/upstream/page'], ['POST', '/upstream/page/server', body($servers[2])]) {
        my ($method, $path, $body) = @$_;
        my $answer = http($method, $site->{port}, "/api$path", body => $body);
        is($answer->{status}, 500, "$method $path");
        like($answer->{body}, qr/^save failed: \S.* \(os error \d+\), nothing has changed$/, 'is not saved');
    }
    my $answer = http('POST', $site->{port}, '/api/upstream/page', body => json_text($servers[2]));
    is($answer->{status}, 500, 'as JSON');
    like(json($answer->{body})->{msg}, qr/^save failed: \S/, 'the same');
    is(detail($site), $before, 'nothing changes');
    is_deeply([files($site)], \@files, 'nor on disk');
    return;
}

sub files {
    my $site = shift;
    opendir my $folder, $site->{state} or return;
    # Beside the lists there is a file that says whose the folder is.
    return sort grep { !/^\.(?:\.|owner)?$/ } readdir $folder;
}

sub slurp { my ($site, $file) = @_; return slurp_file("$site->{state}/$file") }

sub slurp_file {
    open my $file, '<:raw', $_[0] or return '';
    local $/;
    return <$file> // '';
}

sub write_state {
    my ($site, $file, $text) = @_;
    open my $handle, '>:raw', "$site->{state}/$file" or die "$site->{state}/$file: $!\n";
    print $handle $text;
    close $handle or die "$site->{state}/$file: $!\n";
    chmod 0600, "$site->{state}/$file";
    chown $uid, $gid, "$site->{state}/$file" if $> == 0;
    return;
}

sub folder_is {
    my ($site, $mode, $name) = @_;
    my @stat = stat $site->{state};
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(sprintf('%04o %d %d', S_IMODE($stat[2]), @stat[4, 5]), sprintf('%04o %d %d', $mode, $uid, $gid), $name);
}

# The master first: it is not to see its workers die.
sub pids { my $nginx = $_[0]{nginx}; return ($nginx->pid, $nginx->processes) }

# All of nginx at once: a master that still ran would start another worker.
sub kill_whole {
    my ($site) = @_;
    kill 'STOP', $site->{nginx}->pid;
    my @pids = pids($site);
    kill 'KILL', reverse @pids;
    return @pids;
}

sub ended {
    my ($site, @pids) = @_;
    $site->{nginx}->exited(10);
    wait_until { gone(@pids) } 10 or fail("@pids do not end");
    return;
}

# A temporary file of a process that there is.
sub is_of_process { return $_[0] =~ /\.(\d+)(?:-\d+)?\.tmp$/ && kill 0, $1 }

# A killed thread that waits for its disk ends later than its process seems to.
sub gone {
    my @tasks = map { glob "/proc/$_/task/*/stat" } @_;
    return !grep { slurp_file($_) =~ /\) [^ZX] / } @tasks;
}

sub workers_of {
    my $master = shift or return;
    my @children = split ' ', slurp_file("/proc/$master/task/$master/children");
    return grep { slurp_file("/proc/$_/cmdline") =~ /^nginx: worker process/ } @children;
}

# Nobody changes the folder until the result is closed.
sub held {
    my $site = shift;
    open my $folder, '<', $site->{state} or die "$site->{state}: $!\n";
    flock $folder, LOCK_EX or die "$site->{state}: $!\n";
    return $folder;
}

sub connection_to {
    my ($site, $pid) = @_;
    for (1 .. 500) {
        my $connection = http_connect($site->{port});
        my $answer = http_get(0, '/pid', connection => $connection);
        return $connection if $answer->{body} eq $pid;
    }
    die "no connection to worker $pid\n";
}

# A POST that a worker has, but cannot answer yet.
sub waiting_post {
    my ($site, $pid, $name, @list) = @_;
    my $connection = connection_to($site, $pid);
    my $body = body(@list);
    $connection->send("POST /api/upstream/$name HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($body) . "\r\n\r\n$body");
    # A worker reads its connections in their order; what it answers now came later.
    http_get(0, '/pid', connection => connection_to($site, $pid)) for 1 .. 2;
    return $connection;
}

# Traces the workers. Returns a sub that ends it and gives the calls.
sub traced {
    my ($site, $calls, $inject) = @_;
    my $file = "$site->{nginx}{dir}/strace-" . ++$site->{traces};
    my @workers = $site->{nginx}->workers;
    my $process = Test::Upsync::Process->spawn(output => "$file.log", command => ['strace', '-f', '-y', '-s', '64',
        '-e', "trace=$calls", $inject ? ('-e', "inject=$inject") : (), '-o', $file, map { ('-p', $_) } @workers]);
    wait_until {
        get($site, '/pid');
        my $text = slurp_file($file);
        @workers == grep { $text =~ /^$_ /m } @workers;
    } 10, 'traced';
    return sub {
        $process->stop('INT');
        return calls($file);
    };
}

# The calls in the order in which they ended, with the lines where they started and ended.
sub calls {
    my $file = shift;
    my (@calls, %begun);
    my $line = 0;
    for (split /\n/, slurp_file($file)) {
        $line++;
        my ($thread, $text) = /^(\d+) +(.*)/ or next;
        if ($text =~ /(.*) <unfinished \.\.\.>$/) {
            $begun{$thread} = [$line, $1];
        } elsif ($text =~ /^<\.\.\. \w+ resumed>(.*)/ && $begun{$thread}) {
            my ($started, $first) = @{ delete $begun{$thread} };
            push @calls, { thread => $thread, started => $started, ended => $line, text => $first . $1 };
        } else {
            push @calls, { thread => $thread, started => $line, ended => $line, text => $text };
        }
    }
    return @calls;
}
