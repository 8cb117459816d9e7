#!/usr/bin/perl

# The dump file: the last list on disk, for a start without Consul and for nginx's own include.

use strict;
use warnings;

use Fcntl qw(S_IMODE);
use POSIX qw(mkfifo);
use Test::More;

use lib 't/lib';
use Test::Upsync;

# As root also with workers that are not, as Debian has them.
my $t = Test::Upsync->new($> == 0 ? (user => 'nobody') : ());
my $dir = $t->testdir;
my $fake = $t->fake_consul;
my ($uid, $gid) = $> == 0 ? (getpwnam 'nobody')[2, 3] : ($>, (split ' ', $))[0]);
my $rest = 'max_fails=2 fail_timeout=10s';
my $defaults = "weight=1 $rest";

my $index = 100;
sub answer {
    my ($name, %servers) = @_;
    $fake->reply_kv(++$index, { map { ("$name/$_" => $servers{$_}) } keys %servers }, path => "/v1/kv/$name/");
    return;
}

sub followed {
    my ($name, $path, $more) = @_;
    return $t->expand("    upstream $name {\n        upsync " . $fake->address
        . "/v1/kv/$name/ upsync_type=consul upsync_interval=50ms @{[ $more // '' ]};\n"
        . "        upsync_dump_path $path;\n    }\n");
}

# A listening port, and upstreams.
sub conf {
    my ($port, @upstreams) = @_;
    return "%%TEST_GLOBALS%%\nworker_processes 2;\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\n" . join('', @upstreams)
        . "server { listen 127.0.0.1:%%PORT_$port%%; location / { upstream_show; } }\n}\n";
}

sub show { return http_get($t->port($_[0]), "/?$_[1]")->{body} }

sub servers_are {
    my ($port, $name, $servers, $text) = @_;
    my @shown;
    wait_until { "@{[ @shown = show($port, $name) =~ /^ {8}server (.*);$/mg ]}" eq "@$servers" } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is_deeply(\@shown, $servers, $text // "the list of $name");
}

sub file_is {
    my ($file, $expected, $name) = @_;
    my $text;
    wait_until { ($text = $t->read_file($file)) eq $expected } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($text, $expected, $name);
}

# nginx without our module reads the file.
sub stock_reads {
    my ($file, $name) = @_;
    my ($status, $output) = $t->nginx_t(
        "pid nginx.pid;\nevents {}\nhttp {\n%%TEST_GLOBALS_HTTP%%\nupstream a {\ninclude $dir/$file;\n}\n}\n");
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($status, 0, $name) || diag($output);
}

mkdir "$dir/$_" or die "$dir/$_: $!\n" for qw(readonly directory.conf stale);
chmod 0777, "$dir/stale";
$t->write_file('readonly/app.conf', '');
chmod 0555, "$dir/readonly";
mkfifo("$dir/fifo.conf", 0644) or die "$dir/fifo.conf: $!\n";
$t->write_file('stale/app.conf.tmp', 'half a li');
chmod 0600, "$dir/stale/app.conf.tmp";

my @names = qw(app emptied inplace stale backups);
answer($_, '127.0.0.1:1' => '') for @names;
my $conf = conf(0, followed('app', "$dir/app.conf"), followed('emptied', "$dir/emptied.conf", 'allow_empty=on'),
    followed('never', "$dir/never.conf"), followed('inplace', "$dir/readonly/app.conf"),
    followed('stale', "$dir/stale/app.conf"), followed('backups', "$dir/backups.conf"));
$t->write_file_expand('nginx.conf', $conf);
$t->run;

subtest 'text' => sub {
    file_is('app.conf', "server 127.0.0.1:1 $defaults;\n", 'one server');
    stock_reads('app.conf', 'nginx includes it');
    my @all = (
        ['127.0.0.1:3', { weight => 0 }, "weight=1 $rest down"],
        ['127.0.0.1:4', { weight => 65535, max_fails => 0, fail_timeout => 0 }, 'weight=65535 max_fails=0 fail_timeout=0s'],
        ['127.0.0.1:5', { map { ($_ => 2147483647) } qw(max_fails fail_timeout max_conns) },
            'weight=1 max_fails=2147483647 fail_timeout=2147483647s max_conns=2147483647'],
        ['127.0.0.1:6', { backup => 1, down => 1, max_conns => 3 }, "$defaults max_conns=3 backup down"],
        ['[::1]:7', '', $defaults],
        ['unix:/run/app.sock', '', $defaults],
    );
    answer('app', '127.0.0.1:1' => { weight => 4 }, map { ($_->[0] => $_->[1]) } @all);
    # The newest first: of those that come at once, the last in Consul's order.
    file_is('app.conf', join('', map({ "server $_->[0] $_->[2];\n" } reverse @all), "server 127.0.0.1:1 weight=4 $rest;\n"),
        'all kinds');
    stock_reads('app.conf', 'nginx includes it');
};

subtest 'only backup servers' => sub {
    answer('backups', '127.0.0.1:1' => '{"backup":1}', '127.0.0.1:2' => '{"backup":1}');
    servers_are(0, 'backups', ["127.0.0.1:2 $defaults backup", "127.0.0.1:1 $defaults backup"]);
    wait_until { $t->read_file('backups.conf') =~ /127\.0\.0\.1:2/ } 5, 'dumped';
    stock_reads('backups.conf', 'nginx includes it');
};

subtest 'file' => sub {
    my @stat = stat "$dir/app.conf";
    is(sprintf('%04o', S_IMODE($stat[2])), '0644', 'mode');
    is_deeply([@stat[4, 5]], [$uid, $gid], 'owner');
    answer('app', '127.0.0.1:1' => '');
    file_is('app.conf', "server 127.0.0.1:1 $defaults;\n", 'a change');
    isnt((stat "$dir/app.conf")[1], $stat[1], 'is a new file');
    is(sprintf('%04o', S_IMODE((stat "$dir/app.conf")[2])), '0644', 'of the same mode');
    is_deeply([glob "$dir/app.conf*"], ["$dir/app.conf"], 'and no other is left');

    unlink "$dir/app.conf" or die "$dir/app.conf: $!\n";
    answer('app', '127.0.0.1:1' => '', '127.0.0.1:2' => '');
    file_is('app.conf', "server 127.0.0.1:2 $defaults;\nserver 127.0.0.1:1 $defaults;\n", 'deleted, it is written again');
    stock_reads('app.conf', 'nginx includes it');
    file_is('stale/app.conf', "server 127.0.0.1:1 $defaults;\n", 'what a crash left is in nobody\'s way');
};

subtest 'no servers' => sub {
    file_is('emptied.conf', "server 127.0.0.1:1 $defaults;\n", 'one');
    answer('emptied');
    servers_are(0, 'emptied', [], 'none');
    answer('app', '127.0.0.1:2' => '');
    file_is('app.conf', "server 127.0.0.1:2 $defaults;\n", 'a later change elsewhere is on disk');
    file_is('emptied.conf', "server 127.0.0.1:1 $defaults;\n", 'but not that there are none');
    file_is('never.conf', '', 'where there never were any, nothing is written');
};

subtest 'a folder that workers cannot write to' => sub {
    plan skip_all => 'the super-user can' if $> == 0 && $uid == 0;
    my $warning = qr/\[warn\] \S+ upsync: upstream "(\w+)": workers cannot make files in "\Q$dir\E\/(\w+)", /;
    $warning = qr/${warning}so "upsync_dump_path" is written in place and may be cut short by a crash$/m;
    is_deeply([$t->log =~ /$warning/g], ['inplace', 'readonly'], 'is told once');
    file_is('readonly/app.conf', "server 127.0.0.1:1 $defaults;\n", 'written in place');
    my @stat = stat "$dir/readonly/app.conf";
    is(sprintf('%04o', S_IMODE($stat[2])), '0644', 'mode');
    answer('inplace', '127.0.0.1:2' => '{"down":1}');
    file_is('readonly/app.conf', "server 127.0.0.1:2 $defaults down;\n", 'a change');
    is((stat "$dir/readonly/app.conf")[1], $stat[1], 'the file is the same');
    is_deeply([glob "$dir/readonly/*"], ["$dir/readonly/app.conf"], 'and no other is left');
    is(scalar(grep { /$warning/ } split /\n/, $t->log), 1, 'still told once');
};

subtest 'a restart without Consul' => sub {
    my %before = map { ($_ => show(0, $_)) } qw(app inplace stale);
    $t->stop;
    $fake->stop;
    my @stat = stat "$dir/app.conf";
    my $mark = $t->log_mark;
    $t->run;
    is(show(0, $_), $before{$_}, "the list of $_ is that of its file") for sort keys %before;
    servers_are(0, 'emptied', ["127.0.0.1:1 $defaults"], 'the last that there was');
    servers_are(0, 'backups', ["127.0.0.1:2 $defaults", "127.0.0.1:1 $defaults"], 'where all are backup, none is');
    servers_are(0, 'never', []);
    unlike($t->log($mark), qr/skipped/, 'all of the files is good');
    is((stat "$dir/app.conf")[1], $stat[1], 'the file is the same');
    $fake->run;
    answer('app', '127.0.0.1:1' => '', '127.0.0.1:2' => '');
    servers_are(0, 'app', ["127.0.0.1:1 $defaults", "127.0.0.1:2 $defaults"], 'Consul is back');
    file_is('app.conf', "server 127.0.0.1:1 $defaults;\nserver 127.0.0.1:2 $defaults;\n", 'and its list is dumped');
};

subtest 'a file that is not its own' => sub {
    answer('linked', '127.0.0.1:1' => '');
    for my $make (sub { link $_[0], $_[1] }, sub { symlink $_[0], $_[1] }) {
        $t->write_file('secret', "secret\n");
        chmod 0600, "$dir/secret";
        my $owner = (stat "$dir/secret")[4];
        unlink "$dir/linked.conf";
        $make->("$dir/secret", "$dir/linked.conf") or die "link: $!";
        my $nginx = $t->another_nginx(conf(1, followed('linked', "$dir/linked.conf")));
        $nginx->run;
        $nginx->log_like(qr/\[warn\].*upstream "linked": cannot write "\Q$dir\E\/linked\.conf" of "upsync_dump_path"/, 'said');
        servers_are(1, 'linked', ['127.0.0.1:1 weight=1 max_fails=2 fail_timeout=10s'], 'the list serves');
        is((stat "$dir/secret")[4], $owner, 'the other file is given to nobody');
        is($t->read_file('secret'), "secret\n", 'nor written');
        $nginx->stop;
    }
};

subtest 'a file that is not as it should be' => sub {
    $t->write_file('corrupt.conf', <<'EOF');
server 127.0.0.1:11 weight=2;
server 127.0.0.1:12 weight=many;
server 127.0.0.1:13 max_fails=3 sloe_start=3s;
include /etc/passwd;
server backend.example.com:80;
server 127.0.0.1:14 # a comment
    fail_timeout=1m backup;
server 127.0.0.1:15 wei
EOF
    $t->write_file('garbage.conf', join '', map { chr($_ * 7919 % 256) } 1 .. 10_000);
    $t->write_file('zeros.conf', "\0" x 10_000);
    my @kinds = qw(corrupt garbage zeros directory fifo);
    answer($_) for @kinds, 'nofolder';
    $fake->reply(path => "/v1/kv/$_/", status => 500) for @kinds, 'nofolder';
    my $with_server = sub { $_[0] =~ s/\}\n$/    server 127.0.0.1:1 max_fails=2;\n    }\n/r };
    my $nginx = $t->another_nginx(conf(1, map({ $with_server->(followed($_, "$dir/$_.conf")) } @kinds),
        $with_server->(followed('nofolder', "$dir/nofolder/app.conf"))));
    my ($status, $output) = $t->nginx_t(conf(1, map { $with_server->(followed($_, "$dir/$_.conf")) } @kinds));
    is($status, 0, 'nginx -t is content') or diag($output);
    $nginx->run;

    servers_are(1, 'corrupt', ['127.0.0.1:11 weight=2 max_fails=1 fail_timeout=10s',
        '127.0.0.1:14 weight=1 max_fails=1 fail_timeout=60s backup'], 'what is good of it is used');
    my $skipped = sub {
        my $name = shift;
        return [$nginx->log =~ /upsync: upstream "$name": "\Q$dir\/$name\E\.conf"(.*), skipped$/mg];
    };
    is_deeply($skipped->('corrupt'), [
        ', line 2, column 1: invalid value in "weight=many", expected 0 to 65535',
        ', line 3, column 1: unknown parameter "sloe_start=3s"',
        ', line 4, column 1: expected "server", not "include"',
        ', line 5, column 1: expected an address, not the host name "backend.example.com:80"',
        ', line 8, column 1: no ";" at the end of "server 127.0.0.1:15 wei"',
    ], 'and each mistake is told, once');
    servers_are(1, $_, ["127.0.0.1:1 $defaults"], "$_: the server lines serve") for qw(garbage zeros directory fifo nofolder);
    cmp_ok(scalar @{ $skipped->('garbage') }, '>', 0, 'garbage is told');
    cmp_ok(scalar @{ $skipped->('garbage') }, '<=', 11, 'not all of it');
    unlike($nginx->log, qr/[\0-\x09\x0b-\x1f\x7f]/, 'and nothing that moves a cursor');
    is_deeply($skipped->($_), [' is no dump file'], "$_ is told, once") for qw(directory fifo);
    my %cannot = (
        directory => ["$dir/directory.conf", '(?:Is a directory|not a regular file)'],
        fifo => ["$dir/fifo.conf", '(?:No such device or address|not a regular file)'],
        nofolder => ["$dir/nofolder/app.conf", 'No such file or directory'],
    );
    my $cannot = sub {
        my ($level, $name) = @_;
        my ($path, $why) = @{ $cannot{$name} };
        return scalar(() = $nginx->log
            =~ /\[$level\] \S+ upsync: upstream "$name": cannot write "\Q$path\E" of "upsync_dump_path": $why/g);
    };
    is($cannot->('warn', $_), 1, "$_: that it cannot be written is told at the start") for sort keys %cannot;

    for my $port (2, 3) {
        answer($_, "127.0.0.1:$port" => '') for @kinds, 'nofolder';
        servers_are(1, $_, ["127.0.0.1:$port $defaults"], "$_: Consul's list") for @kinds, 'nofolder';
        file_is("$_.conf", "server 127.0.0.1:$port $defaults;\n", "$_: replaced by it") for qw(corrupt garbage zeros);
    }
    ok(-d "$dir/directory.conf", 'but a directory is not');
    is($cannot->('error', $_), 1, "$_: that it is not written is told once") for sort keys %cannot;
    ok(-p "$dir/fifo.conf", 'nor is a FIFO');
    wait_until { !glob "$dir/*.tmp" } 5, 'nothing is left half done';
    my %who = map { (http_get($t->port(1), '/?fifo')->{status} => 1) } 1 .. 10;
    is_deeply(\%who, { 200 => 1 }, 'all workers answer');
    $nginx->stop;
};

chmod 0755, "$dir/readonly";
$t->done;
