package Test::Upsync;

=head1 NAME

Test::Upsync - harness of the tests, in the manner of nginx's own Test::Nginx

=head1 SYNOPSIS

    use Test::More;
    use Test::Upsync;

    my $t = Test::Upsync->new;
    my $consul = $t->consul;
    my $backends = $t->backends(2);

    $t->write_file_expand('nginx.conf', <<'EOF');
    %%TEST_GLOBALS%%
    events {}
    http {
        %%TEST_GLOBALS_HTTP%%
        upstream app {
            upsync %%CONSUL%%/v1/kv/upstreams/app/ upsync_type=consul;
        }
        server {
            listen 127.0.0.1:%%PORT_0%%;
            location / { proxy_pass http://app; }
        }
    }
    EOF
    $t->run;

    is(http_get($t->port(0), '/')->{status}, 200, 'served');
    $t->done;

Environment: TEST_NGINX_BIN, TEST_NGINX_MODULE, TEST_CONSUL_BIN (else found in PATH and objs/),
TEST_KEEP=1 keeps the folder of a test that passed, TEST_LOG is the error log's level (info),
TEST_USER the workers' user when root runs the tests (root).

=cut

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);
use Fcntl qw(:flock);
use File::Basename qw(basename dirname);
use File::Path qw(make_path remove_tree);
use File::Spec;
use File::Temp qw(tempdir);
use IO::Socket::INET;
use Test::More;

use Test::Upsync::Backends;
use Test::Upsync::Consul;
use Test::Upsync::FakeConsul;
use Test::Upsync::HTTP;
use Test::Upsync::Nginx;
use Test::Upsync::Process;

our @EXPORT = @Test::Upsync::HTTP::EXPORT;

my $root = abs_path(dirname(__FILE__) . '/../../..');
my $objs = "$root/objs";

# However the test ends, by a signal too, its processes end with it.
my @tests;
$SIG{$_} = sub { exit 130 } for qw(INT TERM HUP);
END { $_->_end for @tests }

=head1 METHODS

=head2 new(%opt)

C<< module => 0 >> runs nginx without our module; C<user> is the user its workers run as, if
root runs the test.

=cut

sub new {
    my ($class, %opt) = @_;
    my $self = bless {
        module => 1, user => $ENV{TEST_USER} // 'root', %opt,
        ports => [], locks => [], parts => [], expand => {},
    }, $class;
    make_path("$objs/t/ports");
    my $place = $self->{user} eq 'root' || _open_to_all("$objs/t") ? "$objs/t" : File::Spec->tmpdir;
    $self->{testdir} = tempdir(basename($0, '.t') . '-XXXXXX', DIR => $place);
    # Workers of another user write their dump and temporary files in it.
    chmod $self->{user} eq 'root' ? 0755 : 0777, $self->{testdir};
    $self->{nginx} = $self->_nginx('nginx', $self->{testdir});
    push @tests, $self;
    return $self;
}

sub _open_to_all {
    my $dir = shift;
    for (; $dir ne '/'; $dir = dirname($dir)) {
        return 0 unless (stat $dir)[2] & 01;
    }
    return 1;
}

sub _find {
    my ($name, $variable, @places) = @_;
    my $file = $ENV{$variable};
    ($file) = grep { -f && -r _ } map { "$_/$name" } split(/:/, $ENV{PATH}), @places unless $file;
    return $file // die "no $name found, set $variable\n";
}

sub nginx_binary { return _find('nginx', 'TEST_NGINX_BIN', '/usr/sbin') }

sub module { return $ENV{TEST_NGINX_MODULE} // "$objs/ngx_http_upsync_module.so" }

sub _nginx {
    my ($self, $name, $dir, %opt) = @_;
    my $class = delete $opt{class} // 'Test::Upsync::Nginx';
    my $nginx = $class->new(binary => nginx_binary(), name => $name, dir => $dir, %opt);
    push @{ $self->{parts} }, $nginx;
    return $nginx;
}

=head2 testdir, port(N)

The test's folder; the N-th port of 127.0.0.1 that this test may listen on.

=cut

sub testdir { return $_[0]{testdir} }

sub port {
    my ($self, $number) = @_;
    return $self->{ports}[$number] //= $self->free_port;
}

=head2 free_port

Another port. It is below those the system gives to clients, and held by a file lock as long as
the test runs, so tests that run at the same time do not meet.

=cut

my $next_port = 10000 + $$ * 97 % 20000;

sub free_port {
    my $self = shift;
    for (1 .. 20000) {
        my $port = $next_port;
        $next_port = 10000 if ++$next_port >= 30000;
        open my $lock, '>>', "$objs/t/ports/$port" or die "$objs/t/ports/$port: $!\n";
        next unless flock $lock, LOCK_EX | LOCK_NB;
        next unless _bindable($port);
        push @{ $self->{locks} }, $lock;
        return $port;
    }
    die "no free port\n";
}

sub _bindable {
    my $port = shift;
    my @address = (LocalAddr => '127.0.0.1', LocalPort => $port);
    return IO::Socket::INET->new(@address, Listen => 1, ReuseAddr => 1)
        && IO::Socket::INET->new(@address, Proto => 'udp');
}

=head2 write_file(NAME, TEXT), write_file_expand(NAME, TEXT), read_file(NAME), expand(TEXT)

Files of the test's folder. C<expand> puts in

    %%PORT_n%%            port(n)
    %%TESTDIR%%           the test's folder
    %%MODULE%%            our module's path
    %%CONSUL%%            HOST:PORT of the test's Consul, or fake Consul
    %%BACKEND_n%%         address of the n-th backend
    %%TEST_GLOBALS%%      load_module, daemon off, pid, error_log, user
    %%TEST_GLOBALS_HTTP%% folders of temporary files, access_log off

=cut

sub write_file {
    my ($self, $name, $text) = @_;
    my $path = "$self->{testdir}/$name";
    open my $file, '>:raw', $path or die "$path: $!\n";
    print $file $text;
    close $file or die "$path: $!\n";
    return $path;
}

sub write_file_expand {
    my ($self, $name, $text) = @_;
    return $self->write_file($name, $self->expand($text));
}

sub read_file {
    my ($self, $name) = @_;
    return Test::Upsync::Nginx::_slurp("$self->{testdir}/$name");
}

sub expand {
    my ($self, $text) = @_;
    $text =~ s/%%TEST_GLOBALS%%/$self->globals/ge;
    $text =~ s/%%TEST_GLOBALS_HTTP%%/$self->globals_http/ge;
    $text =~ s/%%PORT_(\d+)%%/$self->port($1)/ge;
    $text =~ s/%%BACKEND_(\d+)%%/($self->{expand}{BACKENDS} || [])->[$1] \/\/ die "no backend $1\n"/ge;
    $text =~ s/%%TESTDIR%%/$self->{testdir}/g;
    $text =~ s/%%MODULE%%/$self->module/ge;
    $text =~ s/%%([A-Z]+)%%/$self->{expand}{$1} \/\/ die "no $1\n"/ge;
    return $text;
}

sub globals {
    my ($self, %opt) = @_;
    my @lines = ('daemon off;', 'pid nginx.pid;', 'error_log error.log ' . ($ENV{TEST_LOG} // 'info') . ';');
    unshift @lines, 'load_module ' . $self->module . ';' if $opt{module} // $self->{module};
    if ($> == 0) {
        my $group = getgrgid((getpwnam $self->{user})[3]);
        push @lines, "user $self->{user} $group;";
    }
    return join "\n", @lines;
}

sub globals_http {
    my $binary = nginx_binary();
    my $built = `$binary -V 2>&1`;
    my @modules = grep { $built !~ /--without-http_${_}_module/ } qw(proxy fastcgi uwsgi scgi);
    return join "\n", 'access_log off;', map { "${_}_temp_path ${_}_temp;" } 'client_body', @modules;
}

=head2 run, start, stop, reload, signal, workers, old_workers, kill_worker, exited, log, log_mark, log_like, expect_log, nginx

The test's nginx, with F<nginx.conf> of its folder: see L<Test::Upsync::Nginx>.

=cut

for my $method (qw(run start stop reload signal workers old_workers kill_worker exited log log_mark log_like expect_log)) {
    no strict 'refs';
    *$method = sub { my $self = shift; return $self->{nginx}->$method(@_) };
}

sub nginx { return $_[0]{nginx} }

=head2 nginx_t(CONF)

C<nginx -t> with the text CONF, expanded: returns exit status and output.

=cut

sub nginx_t {
    my ($self, $conf) = @_;
    return $self->{nginx}->test($self->expand($conf));
}

=head2 another_nginx(CONF)

A second nginx with the text CONF, expanded, in a folder of its own. Not yet started.

=cut

sub another_nginx {
    my ($self, $conf) = @_;
    my $dir = $self->_dir('nginx');
    $self->write_file_expand(basename($dir) . '/nginx.conf', $conf);
    return $self->_nginx(basename($dir), $dir);
}

sub _dir {
    my ($self, $name) = @_;
    my $dir = "$self->{testdir}/$name-" . ++$self->{dirs}{$name};
    mkdir $dir or die "$dir: $!\n";
    chmod 0777, $dir unless $self->{user} eq 'root';
    return $dir;
}

=head2 consul(%opt), fake_consul

A running L<Test::Upsync::Consul>, L<Test::Upsync::FakeConsul>. C<%%CONSUL%%> is the one that
was asked for last.

=cut

sub consul {
    my ($self, %opt) = @_;
    my $places = "$objs/consul-1.8.7";
    return $self->_part('Test::Upsync::Consul', 'consul', %opt,
        binary => _find('consul', 'TEST_CONSUL_BIN', $places),
        ports => [map { $self->free_port } 1 .. 3]);
}

sub fake_consul {
    my ($self, %opt) = @_;
    return $self->_part('Test::Upsync::FakeConsul', 'fake', %opt, port => $self->free_port);
}

sub _part {
    my ($self, $class, $name, %opt) = @_;
    my $part = $class->new(dir => $self->_dir($name), %opt);
    push @{ $self->{parts} }, $part;
    $self->{expand}{CONSUL} = $part->address;
    return $part->run;
}

=head2 backends(N, %opt)

Running backends on N ports: see L<Test::Upsync::Backends>. C<< listen => [ADDRESS, ...] >> in
C<%opt> adds addresses, unix sockets and IPv6 among them; N may be 0. Each call is a process of
its own, so what is to be stopped alone is asked for alone.

=cut

sub backends {
    my ($self, $number, %opt) = @_;
    my @listen = ((map { '127.0.0.1:' . $self->free_port } 1 .. $number), @{ $opt{listen} // [] });
    my $dir = $self->_dir('backends');
    my $backends = $self->_nginx(basename($dir), $dir, %opt, class => 'Test::Upsync::Backends',
        globals => $self->globals(module => 0), globals_http => globals_http(), listen => \@listen);
    push @{ $self->{expand}{BACKENDS} }, @listen;
    return $backends->run;
}

=head2 done

Stops everything, tests that nothing alarming was logged and nothing left running, and ends the
test.

=cut

sub done {
    my $self = shift;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @nginx = grep { $_->can('assert_clean') } @{ $self->{parts} };
    ok(!(grep { !$_->stop } @nginx), 'all processes of nginx are gone');
    $_->stop for reverse @{ $self->{parts} };
    $_->assert_clean for grep { -e "$_->{dir}/error.log" } @nginx;
    $self->{done} = 1;
    done_testing();
    return;
}

sub _end {
    my $self = shift;
    my $status = $?;
    # Backends outlive nginx, whose requests they may hold.
    eval { $_->stop('TERM') } for @{ $self->{parts} };
    if ($self->{done} && Test::More->builder->is_passing && !$ENV{TEST_KEEP}) {
        remove_tree($self->{testdir});
    } else {
        diag("files of this test: $self->{testdir}");
    }
    $? = $status;
    return;
}

1;
