#!/usr/bin/perl

# Thousands of names made at run time: each is served by its own server, and costs no request more
# than ten names do.

use strict;
use warnings;

use Test::More;
use Time::HiRes qw(time);

use lib 't/lib';
use Test::Upsync;

my $names = $ENV{TEST_NAMES} // 5000;
my $few = 10;
my $requests = 2000;

my $t = Test::Upsync->new;
my @servers = $t->backends(8)->addresses;

my $http = <<'EOF';
        %%TEST_GLOBALS_HTTP%%
        keepalive_requests 1000000000;
        keepalive_time 1d;
        dyups_upstream any;
        upstream any {
            dyups $host;
            server 127.0.0.1:1 down;
            keepalive 32;
        }
EOF
my $locations = <<'EOF';
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            location /dyups { proxy_pass http://any; }
            location /variable { proxy_pass http://$host; }
            location /api { dyups_interface; }
EOF
$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    $http
    add_header X-Pid \$pid always;
    server {
        listen 127.0.0.1:%%PORT_0%% reuseport;
        $locations
    }
}
EOF
$t->run;

my @connections = connections_to_all();
is(@connections, 2, 'a connection to each worker');
my %cost;

make(1 .. $few);
$cost{$_}{$few} = cpu_of($_) for qw(dyups variable);

my $start = time;
make($few + 1 .. $names);
diag sprintf '%d names made in %.1f s', $names, time - $start;
my $listed = () = http_get($t->port(0), '/api/list', timeout => 20)->{body} =~ /^n/mg;
is($listed, $names, "$names names are listed");
diag 'in the zone: ' . (reverse $t->log =~ /(\d+ of \d+ pages free)/g)[0];

for my $way (qw(dyups variable)) {
    is(wrong($way, map { 1 + int rand $names } 1 .. $requests / 2), '',
        "/$way: $requests requests to random names are answered by the right servers");
}
is(wrong('dyups', 1 .. $names), '', 'and all names by every worker');
$cost{$_}{$names} = cpu_of($_) for qw(dyups variable);

subtest 'names that are deleted' => sub {
    my %gone = map { $_ => 1 } grep { $_ % 10 == 3 } 1 .. $names;
    my $failed = grep { api('DELETE', $_)->{body} ne 'success' } sort { $a <=> $b } keys %gone;
    is($failed, 0, scalar(keys %gone) . ' of them');
    my @served = grep { !$gone{$_} } 1 .. $names;
    is(wrong('dyups', map { $served[ rand @served ] } 1 .. 500), '', 'the others are served');
    my @gone = grep { defined } (keys %gone)[ 0 .. 49 ];
    for my $way (qw(dyups variable)) {
        my @statuses = map { my $connection = $_; map { ask($connection, $way, $_)->{status} } @gone } @connections;
        is(scalar(grep { $_ != 502 } @statuses), 0, "/$way: they are not, by no worker") or diag "@statuses";
    }
    make(sort { $a <=> $b } keys %gone);
    is(wrong($_, @gone), '', "/$_: until they are made again") for qw(dyups variable);
};
$t->stop;

for my $way (qw(dyups variable)) {
    diag sprintf '/%s: CPU of the worker for a request: %.1f us with %d names, %.1f us with %d: ratio %.2f', $way,
        $cost{$way}{$few}, $few, $cost{$way}{$names}, $names, $cost{$way}{$names} / $cost{$way}{$few};
}

# The same in instructions, of one process under valgrind. Those in the C library are left out: what
# an allocation takes depends on where the start has left the heap, a little more or less.
subtest 'instructions for a request' => sub {
    my ($valgrind) = grep { -x } map { "$_/valgrind" } split /:/, $ENV{PATH};
    plan skip_all => 'no valgrind' unless $valgrind;
    my %counted;
    for my $number ($few, $names) {
        $counted{$number} = counted($valgrind, $number) or return;
    }
    my %ratio;
    for my $way (qw(dyups variable)) {
        for my $what ('without the C library', 'all') {
            my ($with_few, $with_all) = map { $counted{$_}{$way}{$what} } $few, $names;
            $ratio{$way}{$what} = $with_all / $with_few;
            diag sprintf '/%s: instructions for a request, %s: %.0f with %d names, %.0f with %d: ratio %.3f', $way, $what,
                $with_few, $few, $with_all, $names, $ratio{$way}{$what};
        }
    }
    cmp_ok($ratio{dyups}{'without the C library'}, '<=', 1.02, "as many with $names names as with $few");
    cmp_ok($ratio{dyups}{all}, '<=', 1.05, 'also with the C library');
};

$t->done;

# All of one length, which is what nginx compares first when it looks for a name.
sub name { return sprintf 'n%06d.example', $_[0] }

sub server { return $servers[ $_[0] % @servers ] }

sub api {
    my ($method, $number, %opt) = @_;
    return http($method, 0, '/api/upstream/' . name($number), connection => $connections[ rand @connections ], %opt);
}

# Over connections that are kept.
sub make {
    my @refused = map { "$_->{status} $_->{body}" } grep { $_->{body} ne 'success' }
        map { api('POST', $_, body => 'server ' . server($_) . ';') } @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(join("\n", @refused[ 0 .. ($#refused > 4 ? 4 : $#refused) ]), '', scalar(@_) . ' names made');
}

sub ask {
    my ($connection, $way, $number) = @_;
    return http_get(0, "/$way", host => name($number), connection => $connection);
}

# Which of these names are not answered by their own servers, through each worker.
sub wrong {
    my ($way, @numbers) = @_;
    my @wrong;
    for my $connection (@connections) {
        for my $number (@numbers) {
            my $answer = ask($connection, $way, $number);
            next if $answer->{body} eq 'hello world by ' . server($number) . "\n";
            push @wrong, name($number) . ": $answer->{status} $answer->{body}";
        }
    }
    return join "\n", scalar(@wrong) x !!@wrong, @wrong[ 0 .. ($#wrong > 4 ? 4 : $#wrong) ];
}

# Microseconds on a processor, of the thread that runs the event loop, for a request; of names that
# are there with few and with many.
sub cpu_of {
    my $way = shift;
    my %before = map { $_ => cpu($_) } $t->workers;
    for my $connection (@connections) {
        ask($connection, $way, 1 + $_ % $few) for 1 .. $requests / 2;
    }
    my $spent = 0;
    $spent += cpu($_) - $before{$_} for keys %before;
    return $spent / 1000 / $requests;
}

sub cpu {
    my $pid = shift;
    open my $stat, '<', "/proc/$pid/task/$pid/schedstat" or return 0;
    return (split ' ', <$stat>)[0];
}

sub connections_to_all {
    my %by_pid;
    for (1 .. 1000) {
        my $connection = http_connect($t->port(0));
        my $pid = http_get(0, '/api/list', connection => $connection)->{headers}{'x-pid'};
        $by_pid{$pid} //= $connection;
        last if keys %by_pid == 2;
    }
    return map { $by_pid{$_} } sort keys %by_pid;
}

# Instructions for a request, by way, of one process that has so many names.
sub counted {
    my ($valgrind, $number) = @_;
    my $asked = 300;
    my $nginx = bless $t->another_nginx(<<"EOF"), 'UnderCallgrind';
%%TEST_GLOBALS%%
master_process off;
events {}
http {
    $http
    dyups_state_path state;
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location /next { return 204; }
        $locations
    }
}
EOF
    $nginx->{valgrind} = $valgrind;
    write_state("$nginx->{dir}/state", $number);
    $nginx->run($t->port(1)) or return;

    my $connection = http_connect($t->port(1));
    my @ways = qw(dyups variable);
    my $served = 0;
    for my $way (map { ($_, $_) } @ways) {
        # The first time counts nothing: what is made once is made here.
        for (1 .. $asked) {
            my $answer = ask($connection, $way, 1 + $_ % $few);
            $served++ if $answer->{body} eq 'hello world by ' . server(1 + $_ % $few) . "\n";
        }
        http_get(0, '/next', connection => $connection);
    }
    $connection->close;
    $nginx->stop;
    is($served, 2 * @ways * $asked, "with $number names: served under valgrind");
    my @counts = $nginx->counts;
    is(@counts, 2 * @ways, 'counted') or return;
    my %counted;
    for my $number (0 .. $#ways) {
        my $count = $counts[ 2 * $number + 1 ];
        $counted{ $ways[$number] } = { map { $_ => $count->{$_} / $asked } keys %$count };
    }
    return \%counted;
}

# Lists as they are found after a restart.
sub write_state {
    my ($dir, $number) = @_;
    mkdir $dir, 0700 or die "$dir: $!\n";
    for my $number (1 .. $number) {
        my ($name, $server) = (name($number), server($number));
        open my $file, '>', "$dir/$name.conf" or die "$dir/$name.conf: $!\n";
        print $file "upstream $name {\n    server $server weight=1 max_fails=1 fail_timeout=10s;\n}\n";
        close $file or die "$dir/$name.conf: $!\n";
    }
    return;
}

package UnderCallgrind;

use parent -norequire, 'Test::Upsync::Nginx';

use Test::Upsync::HTTP;

sub command {
    my $self = shift;
    # Whenever a /next is answered the count is written down and begins anew.
    return ($self->{valgrind}, '-q', '--tool=callgrind', "--callgrind-out-file=$self->{dir}/callgrind.out",
        '--dump-before=ngx_http_send_response', $self->SUPER::command);
}

sub run {
    my ($self, $port) = @_;
    $self->start;
    return wait_until { http_get($port, '/next', timeout => 60)->{status} == 204 } 60, 'nginx under valgrind';
}

# What was counted before each /next but the first, which `run` asked.
sub counts {
    my $self = shift;
    my @counts;
    for (my $number = 2; -e "$self->{dir}/callgrind.out.$number"; $number++) {
        my %objects = objects("$self->{dir}/callgrind.out.$number");
        my %count = (all => 0, 'without the C library' => 0);
        for (keys %objects) {
            $count{all} += $objects{$_};
            $count{'without the C library'} += $objects{$_} unless m{/libc[-.][^/]*$};
        }
        push @counts, \%count;
    }
    return @counts;
}

# Instructions by program and library, from callgrind's format: a line of costs counts for the `ob`
# before it, but for one behind `calls`, which says what the called function took.
sub objects {
    my $path = shift;
    open my $file, '<', $path or die "$path: $!\n";
    my (%objects, %names, $object, $is_call);
    while (<$file>) {
        if (/^(c?)ob=\((\d+)\)(?: (.+))?/) {
            $names{$2} = $3 if defined $3;
            $object = $names{$2} unless $1;
        } elsif (/^calls=/) {
            $is_call = 1;
        } elsif (/^[-+*\d]\S* (\d+)$/) {
            $objects{$object} += $1 unless $is_call;
            $is_call = 0;
        }
    }
    return %objects;
}
