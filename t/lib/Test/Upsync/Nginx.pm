package Test::Upsync::Nginx;

=head1 NAME

Test::Upsync::Nginx - an nginx that a test runs: start, reload, workers, log

=cut

use strict;
use warnings;

use POSIX ();
use Test::More;
use Time::HiRes qw(time);

use Test::Upsync::HTTP;
use Test::Upsync::Process;

=head1 METHODS

=head2 new(binary => FILE, dir => DIR, conf => FILE)

Made by C<< $t->nginx >>. FILE C<conf> is relative to DIR, its default F<nginx.conf>.

=cut

sub new {
    my ($class, %opt) = @_;
    return bless { conf => 'nginx.conf', expected => [], %opt }, $class;
}

=head2 run

Starts nginx in the foreground as a child, and waits until its workers run. Dies with the log
if it does not start.

=cut

sub run {
    my $self = shift;
    $self->start;
    return $self if wait_until { !$self->{process}->alive || $self->workers } 10;
    die "nginx did not start:\n" . $self->output . $self->log;
}

=head2 start

Starts nginx without waiting.

=cut

sub start {
    my $self = shift;
    die "nginx runs already\n" if $self->alive;
    $self->{process} = Test::Upsync::Process->spawn(
        command => [$self->command], output => "$self->{dir}/output.log");
    return $self;
}

sub command {
    my $self = shift;
    return ($self->{binary}, '-p', "$self->{dir}/", '-e', 'error.log', '-c', "$self->{dir}/$self->{conf}");
}

=head2 test(CONF)

Runs C<nginx -t> with the text CONF, in the folder F<test>, and returns exit status and output.

=cut

sub test {
    my ($self, $conf) = @_;
    # A folder of its own, so that what is wrong with CONF is not in the log of the running nginx.
    my $dir = "$self->{dir}/test";
    mkdir $dir;
    open my $file, '>', "$dir/nginx.conf" or die "$dir/nginx.conf: $!\n";
    print $file $conf;
    close $file;
    my $pid = open(my $pipe, '-|') // die "fork: $!\n";
    if ($pid == 0) {
        open STDERR, '>&', \*STDOUT;
        exec $self->{binary}, '-t', '-p', "$dir/", '-e', 'error.log', '-c', "$dir/nginx.conf"
            or POSIX::_exit(127);
    }
    my $output = do { local $/; <$pipe> } // '';
    close $pipe;
    return ($? >> 8 || $? & 127, $output);
}

sub pid { my $self = shift; return $self->{process} ? $self->{process}->pid : 0 }

sub alive { my $self = shift; return $self->{process} && $self->{process}->alive }

=head2 workers, old_workers, processes

Process ids of the workers that serve; of those that are shutting down; of all children,
cache manager and loader among them.

=cut

sub workers { return _titled($_[0], qr/^nginx: worker process$/) }

sub old_workers { return _titled($_[0], qr/^nginx: worker process is shutting down$/) }

sub processes { return _titled($_[0], qr/./) }

sub _titled {
    my ($self, $title) = @_;
    return unless $self->pid;
    return grep { _title($_) =~ $title } _children($self->pid);
}

sub _children {
    my $parent = shift;
    if (open my $file, '<', "/proc/$parent/task/$parent/children") {
        return split ' ', <$file> // '';
    }
    return grep { _parent($_) == $parent } map { m{(\d+)} } glob '/proc/[0-9]*';
}

sub _parent { return _slurp("/proc/$_[0]/stat") =~ /\) \w (\d+)/ ? $1 : 0 }

# nginx pads its title with NULs, or with spaces.
sub _title {
    my $title = _slurp("/proc/$_[0]/cmdline");
    $title =~ s/[\0 ]+$//;
    return $title;
}

sub _slurp {
    my $path = shift;
    open my $file, '<:raw', $path or return '';
    local $/;
    return <$file> // '';
}

=head2 reload(%opt)

Sends HUP and waits until only workers of the new generation serve. With C<< fails => 1 >> the
new configuration is expected to be refused: waits for the log's [emerg], which is then no
failure of the test. True if it went as expected.

=cut

sub reload {
    my ($self, %opt) = @_;
    my %old = map { $_ => 1 } $self->workers;
    my $mark = $self->log_mark;
    $self->signal('HUP');

    if ($opt{fails}) {
        $self->expect_log(qr/\[emerg\]/);
        return wait_until { $self->log($mark) =~ /\[emerg\]/ } 10;
    }
    return wait_until {
        my @workers = $self->workers;
        @workers && !grep { $old{$_} } @workers;
    } $opt{seconds} // 10;
}

=head2 signal(NAME), kill_worker(PID)

Signals the master; kills a worker (the first, if none is given) with SIGKILL and waits until
another took its place. Returns the new ones.

=cut

sub signal { my ($self, $signal) = @_; return $self->alive && $self->{process}->signal($signal) }

sub kill_worker {
    my ($self, $pid) = @_;
    my %old = map { $_ => 1 } $self->workers;
    $pid //= ($self->workers)[0];
    $self->expect_log(qr/process $pid exited on signal 9/);
    kill 'KILL', $pid;
    wait_until { !_slurp("/proc/$pid/cmdline") && $self->workers >= keys %old } 10;
    return grep { !$old{$_} } $self->workers;
}

=head2 stop(SIGNAL)

Stops nginx (QUIT, gracefully). False, and a failed test, if it had died before, or if one of its
processes is not gone within 10 s.

=cut

sub stop {
    my ($self, $signal) = @_;
    my $process = $self->{process} or return 1;
    my @left = $self->processes;
    my $clean = $process->alive && $process->stop($signal // 'QUIT', 10);
    delete $self->{process};
    wait_until { !(@left = grep { _title($_) =~ /^nginx/ } @left) } 5;
    kill 'KILL', @left if @left;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    ok(0, "$self->{name} did not end by itself, or died before") unless $clean;
    ok(0, "$self->{name} left processes behind: @left") if @left;
    return $clean && !@left;
}

=head2 exited(SECONDS)

Waits for an nginx that ends without being told to, and returns its exit status; undef if it
runs on.

=cut

sub exited {
    my ($self, $seconds) = @_;
    return unless $self->{process}->wait($seconds // 10);
    my $process = delete $self->{process};
    return $process->{status} >> 8 || $process->{status};
}

=head2 log(MARK), log_mark, log_like(REGEX, NAME), output

The error log, from a place remembered by C<log_mark>; a test that the log matches, waiting up
to 5 s for it; what nginx wrote to stdout and stderr.

=cut

sub log {
    my ($self, $mark) = @_;
    my $log = _slurp("$self->{dir}/error.log");
    return $mark ? substr $log, $mark : $log;
}

sub log_mark { return -s "$_[0]{dir}/error.log" // 0 }

sub log_like {
    my ($self, $regex, $name, $mark) = @_;
    wait_until { $self->log($mark) =~ $regex } 5;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return like($self->log($mark), $regex, $name);
}

sub output { return _slurp("$_[0]{dir}/output.log") }

=head2 expect_log(REGEX)

Lines of the error log that match are expected, though they be alerts.

=cut

sub expect_log {
    my ($self, @regexes) = @_;
    push @{ $self->{expected} }, @regexes;
    return $self;
}

=head2 assert_clean

Tests that nothing alarming was logged: no alert, emerg or death by a signal, no panic, no
sanitizer's report.

=cut

sub assert_clean {
    my $self = shift;
    my @lines = grep {
        my $line = $_;
        $line =~ /\[(?:alert|emerg)\]|exited on signal|panicked at|Sanitizer|runtime error:/
            && !grep { $line =~ $_ } @{ $self->{expected} };
    } split /\n/, $self->log . $self->output;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(join("\n", @lines), '', 'nothing alarming in the log of ' . ($self->{name} // 'nginx'));
}

1;
