package Test::Upsync::Probes;

=head1 NAME

Test::Upsync::Probes - very many servers that are checked, and when each of them was

=head1 SYNOPSIS

    my $probes = Test::Upsync::Probes->new($t, down => [20]);
    my @servers = map { $probes->address($_) } 1 .. 2000;
    # nginx.conf: server $servers[0]; ... check interval=1000 type=http;
    my $schedule = $probes->schedule($servers[0], 1);
    is($schedule->{twice}, 0, 'one probe an interval');

One stock nginx on one port of all addresses 127.1.0.0 to 127.1.255.255. Each request is a probe: it is
logged with the time and the address that was asked.

=cut

use strict;
use warnings;

use Exporter qw(import);
use Fcntl qw(SEEK_CUR);
use List::Util qw(min sum0);
use POSIX qw(floor);
use Time::HiRes qw(time);

use Test::Upsync::Nginx;

our @EXPORT_OK = qw(cpu judge percentile);

=head1 METHODS

=head2 new(TEST, down => [N, ...])

Runs them. The servers in C<down>, by their number, answer 503.

=cut

sub new {
    my ($class, $t, %opt) = @_;
    my $self = bless { port => $t->free_port, times => {}, rest => '' }, $class;
    my $down = join '', map { "listen $_;" } map { $self->address($_) } @{ $opt{down} // [] };
    my $failing = $down && "server { access_log probes.log probes; $down return 503; }";
    $self->{nginx} = $t->another_nginx($t->globals(module => 0) . <<"EOT")->run;

worker_rlimit_nofile 16384;
events { worker_connections 4096; }
http {
    %%TEST_GLOBALS_HTTP%%
    log_format probes '\$msec \$server_addr';
    server {
        access_log probes.log probes;
        listen 0.0.0.0:$self->{port} backlog=4096;
        location / { return 200 "well\\n"; }
    }
    $failing
}
EOT
    return $self;
}

=head2 address(N), nginx

The N-th server, from 1, as C<IP:PORT>; what they all are.

=cut

sub address {
    my ($self, $number) = @_;
    return sprintf '127.1.%d.%d:%d', $number >> 8 & 255, $number & 255, $self->{port};
}

sub nginx { return $_[0]{nginx} }

=head2 times(ADDRESS, FROM, TO), count

The times of the probes of a server, in their order: all, since FROM, before TO. The number of all
probes.

=cut

sub times {
    my ($self, $address, $from, $to) = @_;
    $self->read;
    my $times = $self->{times}{$address} // [];
    return grep { $_ >= ($from // 0) && $_ < ($to // 'inf') } @$times;
}

sub count { my $self = shift; $self->read; return sum0 map { scalar @$_ } values %{ $self->{times} } }

=head2 schedule(ADDRESS, INTERVAL, FROM, TO)

C<judge> of these times.

=cut

sub schedule {
    my ($self, $address, $interval, $from, $to) = @_;
    return judge($interval, $self->times($address, $from, $to));
}

=head2 read

Takes in what was logged meanwhile.

=cut

sub read {
    my $self = shift;
    unless ($self->{log}) {
        open my $log, '<:raw', "$self->{nginx}{dir}/probes.log" or return;
        $self->{log} = $log;
    }
    # No further than it is long now.
    my $left = (-s $self->{log}) - sysseek $self->{log}, 0, SEEK_CUR;
    while ($left > 0) {
        my $read = sysread $self->{log}, $self->{rest}, min($left, 1 << 20), length $self->{rest} or last;
        $left -= $read;
        while ($self->{rest} =~ /\G(\S+) (\S+)\n/gc) {
            push @{ $self->{times}{"$2:$self->{port}"} }, $1;
        }
        substr $self->{rest}, 0, pos($self->{rest}) // 0, '';
    }
    return;
}

=head1 FUNCTIONS

=head2 judge(INTERVAL, TIMES)

Holds the times of one server against a schedule of one probe each INTERVAL seconds, whose phase is
the one that fits them best. Returns a reference to a hash of

=over

=item late

How late each probe was, from 0 to below INTERVAL.

=item twice

Times when it was probed though it had been probed in the same interval. A busy machine only makes
probes late: one that is late by a whole interval or more, for which another one is missing just
before, is not counted.

=item missed

Intervals without a probe, between the first and the last.

=item gaps

The seconds from each to the next.

=back

=cut

sub judge {
    my ($interval, @times) = @_;
    my $phase = _phase($interval, @times);
    my %found = (late => [], twice => [], missed => 0, gaps => [ map { $times[$_] - $times[ $_ - 1 ] } 1 .. $#times ]);
    my ($last, $owed) = (undef, 0);
    for my $time (@times) {
        my $slot = _slot($interval, $phase, $time);
        push @{ $found{late} }, $time - $phase - $slot * $interval;
        # What seems early is what has become of the one before, which may have been the first.
        my $missing = defined $last ? $slot - $last - 1 : $found{late}[0] < -0.01 * $interval;
        if ($missing >= 0) {
            $owed = $missing;
            $found{missed} += $missing if defined $last;
        } elsif ($owed > 0) {
            $owed--;
            $found{missed}-- if $found{missed};
        } else {
            push @{ $found{twice} }, $time;
        }
        $last = $slot;
    }
    $_ < 0 and $_ = 0 for @{ $found{late} };
    return \%found;
}

# nginx's clock is read once in a turn of its event loop, by which a time may be a little early.
sub _slot {
    my ($interval, $phase, $time) = @_;
    return floor(($time - $phase) / $interval + 0.1);
}

# Of the times the one from which the others are the least late, all in all.
sub _phase {
    my ($interval, @times) = @_;
    my ($best, $least) = ($times[0], 'inf');
    for my $phase (@times > 40 ? @times[ 0 .. 39 ] : @times) {
        my $late = 0;
        for my $time (@times) {
            my $slots = ($time - $phase) / $interval + 0.1;
            $late += $slots - floor($slots);
        }
        ($best, $least) = ($phase, $late) if $late < $least;
    }
    return $best;
}

=head2 percentile(SHARE, NUMBERS)

The number below which this share, 0 to 1, of the numbers are; 0 if there are none.

=cut

sub percentile {
    my ($share, @numbers) = @_;
    @numbers = sort { $a <=> $b } @numbers;
    return @numbers ? $numbers[ min($#numbers, int $share * @numbers) ] : 0;
}

=head2 cpu(NGINX)

Seconds of CPU that an nginx has used: its master, its workers, and those that are gone.

=cut

sub cpu {
    my $nginx = shift;
    my $ticks = 0;
    for my $pid ($nginx->pid, $nginx->processes) {
        my @fields = split ' ', Test::Upsync::Nginx::_slurp("/proc/$pid/stat") =~ s/.*\) //sr;
        next unless @fields;
        # utime and stime; and those of the children that were waited for.
        $ticks += $fields[11] + $fields[12] + $fields[13] + $fields[14];
    }
    return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

1;
