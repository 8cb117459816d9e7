package Test::Upsync::Checks;

=head1 NAME

Test::Upsync::Checks - active checks: what check_status says of servers, and servers to be checked

=head1 SYNOPSIS

    # nginx.conf: location = /check_status { check_status; } in the server of %%PORT_0%%
    wait_checked($t, 'app', { '127.0.0.1:8080' => 'up', '127.0.0.1:8081' => 'down' }, 10, 'one is down');
    checked($t, 'app')->{'127.0.0.1:8080'}{rise};
    is_deeply([ flips($t, 'app') ], [ [ '127.0.0.1:8081', 'down', 'connect refused' ] ], 'said once');

=cut

use strict;
use warnings;

use Exporter qw(import);
use IO::Socket::INET;
use Test::More;

use Test::Upsync::HTTP;
use Test::Upsync::Process;

our @EXPORT = qw(checked all_checked wait_checked flips authority responder receive hanging connected_to
    mariadb php_fpm grpc_health has_grpcio);

=head1 WHAT IS SAID

=head2 checked(T, UPSTREAM, %opt), all_checked(T, %opt)

What C<check_status> says in csv of the servers of an upstream: a hash of address to row; of all
upstreams: a hash of their names to such hashes. A row has C<index>, C<upstream>, C<name>,
C<status>, C<rise>, C<fall>, C<type> and C<port>. Asked at C<< port => >> (port 0 of the test) by
C<< uri => >> (F</check_status>).

=cut

sub checked {
    my ($t, $upstream, %opt) = @_;
    return all_checked($t, %opt)->{$upstream} // {};
}

sub all_checked {
    my ($t, %opt) = @_;
    my $answer = http_get($opt{port} // $t->port(0), ($opt{uri} // '/check_status') . '?format=csv');
    my (%upstreams, @fields);
    while ($answer->{body} =~ /\G("(?:[^"]|"")*"|[^",\n]*)([,\n])/g) {
        my ($field, $end) = ($1, $2);
        $field =~ s/""/"/g if $field =~ s/^"(.*)"$/$1/s;
        push @fields, $field;
        next if $end eq ',';
        my %row;
        @row{qw(index upstream name status rise fall type port)} = splice @fields;
        $upstreams{ $row{upstream} }{ $row{name} } = \%row;
    }
    return \%upstreams;
}

=head2 wait_checked(T, UPSTREAM, { ADDRESS => 'up'|'down', ... }, SECONDS, NAME, %opt)

Waits until C<check_status> says so of these servers, and returns whether it does; a test if there
is a NAME. C<%opt> is that of C<checked>.

=cut

sub wait_checked {
    my ($t, $upstream, $expected, $seconds, $name, %opt) = @_;
    my $rows;
    my $is_so = wait_until {
        $rows = checked($t, $upstream, %opt);
        !grep { ($rows->{$_}{status} // '') ne $expected->{$_} } keys %$expected;
    } $seconds;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return $is_so unless defined $name;
    return ok($is_so, $name) || diag("not within $seconds s, but ", explain $rows);
}

=head2 flips(NGINX, UPSTREAM, MARK)

What the error log of NGINX (or of the test's) has since MARK: C<[ADDRESS, 'down', REASON]> and
C<[ADDRESS, 'up']>, each in its level, in their order. Without UPSTREAM it is a hash of upstreams to
references to such lists.

=cut

sub flips {
    my ($nginx, $upstream, $mark) = @_;
    my %flips;
    for (split /\n/, $nginx->log($mark)) {
        if (/\[warn\] .*upsync: upstream "(.*)": server (\S+) is down: (.*)/) {
            push @{ $flips{$1} }, [ $2, 'down', $3 ];
        } elsif (/\[notice\] .*upsync: upstream "(.*)": server (\S+) is up\b/) {
            push @{ $flips{$1} }, [ $2, 'up' ];
        }
    }
    return defined $upstream ? @{ $flips{$upstream} // [] } : \%flips;
}

=head1 CERTIFICATES

=head2 authority(T, NAME), ->issue(NAME, %opt)

An authority of its own, its certificate in the file C<< ->{certificate} >>. C<issue> makes a key and
a certificate for a host's name, in the files C<< {key} >> and C<< {certificate} >> of the hash that
it returns; C<< days => -1 >> makes it one that has expired.

=cut

sub authority {
    my ($t, $name) = @_;
    my $files = _files($t, $name);
    _openssl('req -x509', _new_key($files), "-days 7 -subj /CN=$name -out $files->{certificate}");
    return bless { %$files, t => $t, name => $name }, 'Test::Upsync::Checks::Authority';
}

sub Test::Upsync::Checks::Authority::issue {
    my ($self, $name, %opt) = @_;
    my $files = _files($self->{t}, "$self->{name}-$name" . ($opt{days} // ''));
    my $extensions = $self->{t}->write_file('extensions', "subjectAltName=DNS:$name\nbasicConstraints=CA:FALSE\n");
    _openssl('req -new', _new_key($files), "-subj /CN=$name -out $files->{request}");
    _openssl("x509 -req -in $files->{request} -CA $self->{certificate} -CAkey $self->{key} -extfile $extensions",
        '-set_serial', ++$self->{serial}, '-days', $opt{days} // 7, "-out $files->{certificate}");
    return $files;
}

sub _files {
    my ($t, $name) = @_;
    my $path = $t->testdir . "/$name";
    return { key => "$path.key", certificate => "$path.crt", request => "$path.csr" };
}

sub _new_key { return "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $_[0]{key}" }

sub _openssl {
    my $command = join ' ', 'openssl', @_;
    my $output = `$command 2>&1`;
    die "$command: $output\n" if $?;
    return;
}

=head1 SERVERS

=head2 responder(T, CODE, ADDRESS)

A process that listens on an address of the test's (a free port), and for each connection runs CODE
with its socket and its number, from 1, one after the other. What CODE returns true for is left open,
the rest is closed. C<address> is where; C<stop> ends it, and C<start> starts another that listens
there, which counts anew.

=cut

sub responder {
    my ($t, $code, $address) = @_;
    my $self = bless {
        code => $code, address => $address // '127.0.0.1:' . $t->free_port, output => $t->testdir . '/responder.log',
    }, 'Test::Upsync::Checks::Responder';
    push @{ $t->{parts} }, $self;
    return $self->start;
}

sub Test::Upsync::Checks::Responder::address { return $_[0]{address} }

sub Test::Upsync::Checks::Responder::start {
    my $self = shift;
    my $listener = IO::Socket::INET->new(LocalAddr => $self->{address}, Listen => 511, ReuseAddr => 1)
        or die "$self->{address}: $!\n";
    my $code = $self->{code};
    $self->{process} = Test::Upsync::Process->spawn(output => $self->{output}, code => sub {
        $SIG{PIPE} = 'IGNORE';
        my @left;
        for (my $number = 1; ; $number++) {
            my $client = $listener->accept or next;
            push @left, $client if $code->($client, $number);
            shift @left if @left > 500;
        }
    });
    return $self;
}

sub Test::Upsync::Checks::Responder::stop {
    my $self = shift;
    my $process = delete $self->{process} or return 1;
    return $process->stop;
}

=head2 receive(SOCKET, LENGTH|REGEX)

The bytes that come, so many or until they match; fewer if no more come.

=cut

sub receive {
    my ($socket, $enough) = @_;
    my $bytes = '';
    until (ref $enough ? $bytes =~ $enough : length $bytes >= $enough) {
        sysread $socket, $bytes, ref $enough ? 65536 : $enough - length $bytes, length $bytes or last;
    }
    return $bytes;
}

=head2 hanging(T)

A port of all addresses of this machine (127.0.0.1, 127.0.0.2 ...) at which connections are made, and
nothing ever answers. It is there until what is returned, of which C<port> is the number, goes out of
scope. There is room for some thousands of connections.

=cut

sub hanging {
    my $t = shift;
    my $port = $t->free_port;
    my $listener = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $port, Listen => 4096, ReuseAddr => 1)
        or die "port $port: $!\n";
    return bless { port => $port, listener => $listener }, 'Test::Upsync::Checks::Hanging';
}

sub Test::Upsync::Checks::Hanging::port { return $_[0]{port} }

=head2 connected_to(PORT, PIDS)

How many connections to this port of IPv4 each of these processes holds: a hash of process to number.

=cut

sub connected_to {
    my ($port, @pids) = @_;
    my (%is_there, %held);
    open my $file, '<', '/proc/net/tcp' or return {};
    my $remote = sprintf ':%04X', $port;
    while (<$file>) {
        my @fields = split ' ';
        # ESTABLISHED, and CLOSE_WAIT.
        $is_there{"socket:[$fields[9]]"} = 1 if substr($fields[2], -5) eq $remote && $fields[3] =~ /^0[18]$/;
    }
    for my $pid (@pids) {
        $held{$pid} = grep { $is_there{ readlink($_) // '' } } glob "/proc/$pid/fd/*";
    }
    return \%held;
}

=head2 mariadb(T, PORT)

A MariaDB on 127.0.0.1, a L<Test::Upsync::Process>; undef where there is none. The next one for the
same PORT has the same data. It has no table of users: it greets everybody.

=cut

sub mariadb {
    my ($t, $port, @options) = @_;
    my ($binary) = grep { -x } '/usr/sbin/mariadbd', '/usr/sbin/mysqld';
    return unless $binary;
    my $dir = $t->testdir . "/mariadb-$port";
    -d $dir or mkdir $dir or die "$dir: $!\n";
    return _part($t, "mariadb-$port", $binary, '--no-defaults', $> == 0 ? '--user=root' : (), "--datadir=$dir",
        # A path to a socket is short.
        "--socket=mariadb.sock", "--pid-file=$dir/pid", '--bind-address=127.0.0.1', "--port=$port",
        '--skip-grant-tables', '--skip-name-resolve', '--skip-log-bin', '--innodb=OFF', '--default-storage-engine=Aria',
        @options);
}

=head2 php_fpm(T, PORT, DIRECTIVES)

A php-fpm on 127.0.0.1 that runs in the test's folder; undef where there is none. DIRECTIVES are
added to its pool.

=cut

sub php_fpm {
    my ($t, $port, $directives) = @_;
    my $binary = (sort glob '/usr/sbin/php-fpm*')[-1] or return;
    my $user = $> == 0 ? "user = root\ngroup = root" : '';
    my $dir = $t->testdir;
    my $conf = $t->write_file("php-fpm-$port.conf", <<"EOF");
[global]
daemonize = no
error_log = $dir/php-fpm-$port.log
[checked]
$user
listen = 127.0.0.1:$port
chdir = $dir
pm = static
pm.max_children = 4
@{[ $directives // '' ]}
EOF
    return _part($t, "php-fpm-$port", $binary, '-n', '-F', $> == 0 ? '-R' : (), '-y', $conf);
}

=head2 has_grpcio, grpc_health(T, %opt)

Whether Python has grpcio; its server. C<< servers => { ADDRESS => FILE, ... } >> are where it
listens, each with C<grpc.health.v1.Health>, whose status is the number in FILE: 0 UNKNOWN, 1 SERVING,
2 NOT_SERVING, 3 SERVICE_UNKNOWN; C<error N> there is an error with that status code, and C<none> is
a server that does not know the method. C<< tls => FILES >>, those of C<issue>, has it listen with TLS
at all of them, and C<< client => FILE >> wants a certificate by the authority in FILE. The services
that were asked for are in the file C<< log => FILE >>, each in a line.

=cut

sub has_grpcio { return system("/usr/bin/python3 -c 'import grpc' 2>/dev/null") == 0 }

sub grpc_health {
    my ($t, %opt) = @_;
    my $script = $t->write_file('health.py', <<'EOF');
import signal
import sys
import threading
from concurrent import futures

import grpc

class Health(grpc.GenericRpcHandler):
    def __init__(self, path, log):
        self.path = path
        self.log = log

    def service(self, details):
        with open(self.path) as file:
            words = file.read().split()
        if words[0] == "none" or details.method != "/grpc.health.v1.Health/Check":
            return None

        def check(request, context):
            with open(self.log, "a") as log:
                log.write("%r %s\n" % (request, details.method))
            if words[0] == "error":
                code = [code for code in grpc.StatusCode if code.value[0] == int(words[1])][0]
                context.abort(code, "as asked for")
            # 0 is not written, by the rules of protocol buffers.
            status = int(words[0])
            return bytes([8, status]) if status else b""

        return grpc.unary_unary_rpc_method_handler(check)

def file(path):
    with open(path, "rb") as file:
        return file.read()

log, key, certificate, client, *places = sys.argv[1:]
servers = []
for place in places:
    address, path = place.split("=", 1)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([Health(path, log)])
    if key:
        root = file(client) if client else None
        assert server.add_secure_port(address, grpc.ssl_server_credentials(
            [(file(key), file(certificate))], root, bool(client)))
    else:
        assert server.add_insecure_port(address)
    server.start()
    servers.append(server)
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
end.wait()
for server in servers:
    server.stop(None)
EOF
    my $tls = $opt{tls} // { key => '', certificate => '' };
    return _part($t, 'grpc', '/usr/bin/python3', $script, $opt{log}, $tls->{key}, $tls->{certificate}, $opt{client} // '',
        map { "$_=$opt{servers}{$_}" } sort keys %{ $opt{servers} });
}

sub _part {
    my ($t, $name, @command) = @_;
    my $process = Test::Upsync::Process->spawn(command => \@command, output => $t->testdir . "/$name.output");
    push @{ $t->{parts} }, $process;
    return $process;
}

1;
