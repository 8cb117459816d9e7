package Test::Upsync::HTTP;

=head1 NAME

Test::Upsync::HTTP - raw HTTP requests, waiting, load

=cut

use strict;
use warnings;

use Exporter qw(import);
use IO::Socket::IP;
use IO::Socket::UNIX;
use IO::Select;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(http http_get http_connect wait_until wrk json);

=head1 FUNCTIONS

=head2 http_get(PORT, URI, %opt), http(METHOD, PORT, URI, %opt)

Sends one request and returns a reference to a hash: C<status>, C<headers> (names in lower
case, a repeated one joined with comma), C<body>, C<raw> (all as received). A request that got
no whole answer has C<status> 0 or a C<error> that says why.

PORT is a port of 127.0.0.1, C<HOST:PORT> or C<unix:PATH>. Options: C<host>, C<headers>
(a hash), C<body>, C<timeout> (5 s), C<connection> (of http_connect, kept alive).

=cut

sub http_get {
    my ($port, $uri, %opt) = @_;
    return http('GET', $port, $uri, %opt);
}

sub http {
    my ($method, $port, $uri, %opt) = @_;
    my $connection = $opt{connection} || http_connect($port);
    my $close = $opt{connection} ? 'keep-alive' : 'close';
    my %headers = (Host => $opt{host} // 'localhost', Connection => $close, %{ $opt{headers} // {} });
    $headers{'Content-Length'} //= length $opt{body} if defined $opt{body};

    my $request = "$method $uri HTTP/1.1\r\n";
    $request .= "$_: $headers{$_}\r\n" for sort keys %headers;
    return $connection->request($method, "$request\r\n" . ($opt{body} // ''), $opt{timeout} // 5);
}

=head2 http_connect(PORT)

A connection that may carry several requests. C<send(BYTES)>, C<receive(METHOD, SECONDS)>
and C<close> are its parts, for tests that need a request held half way.

=cut

sub http_connect { return Test::Upsync::HTTP::Connection->new(@_) }

=head2 wait_until { condition } SECONDS, NAME

Polls until the condition is true, and returns its value; false when SECONDS have passed.
With a NAME it is a test.

=cut

sub wait_until(&$;$) {
    my ($condition, $seconds, $name) = @_;
    my $start = time;
    my $value;
    until ($value = $condition->()) {
        last if time - $start > $seconds;
        sleep 0.005;
    }
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    ok($value, $name) || diag("not within $seconds s") if defined $name;
    return $value;
}

=head2 wrk(URL, %opt)

Runs wrk and returns a hash: C<requests>, C<non_2xx>, C<socket_errors>, C<rate>, C<output>.
Options: C<connections> (16), C<threads> (1), C<seconds> (2), C<headers>, C<script> (a Lua
file), C<timeout> (5). With C<background> it returns a sub that waits for the result, and C<pid> is a
reference that gets the process to send INT to, for an earlier end.

=cut

sub wrk {
    my ($url, %opt) = @_;
    my @command = ('wrk', '-c', $opt{connections} // 16, '-t', $opt{threads} // 1,
        '-d', ($opt{seconds} // 2) . 's', '--timeout', ($opt{timeout} // 5) . 's', '--latency');
    push @command, '-H', "$_: $opt{headers}{$_}" for sort keys %{ $opt{headers} // {} };
    push @command, '-s', $opt{script} if $opt{script};

    my $pid = open my $pipe, '-|', @command, $url or die "wrk: $!\n";
    ${ $opt{pid} } = $pid if $opt{pid};
    my $result = sub {
        my $output = do { local $/; <$pipe> } // '';
        close $pipe or die "wrk failed: $output\n";
        return _wrk_result($output);
    };
    return $opt{background} ? $result : $result->();
}

sub _wrk_result {
    my $output = shift;
    my ($requests) = $output =~ /(\d+) requests in/;
    my ($rate) = $output =~ m{Requests/sec:\s*([\d.]+)};
    my ($non_2xx) = $output =~ /Non-2xx or 3xx responses: (\d+)/;
    my $errors = 0;
    $errors += $_ for map { /(\d+)/g } $output =~ /Socket errors: (.*)/;
    my %latency = $output =~ /^\s+(50|99)%\s+(\S+)/mg;
    return {
        requests => $requests // 0, rate => $rate // 0, non_2xx => $non_2xx // 0,
        socket_errors => $errors, latency => \%latency, output => $output,
    };
}

=head2 json(TEXT)

Decoded JSON.

=cut

sub json { return JSON::PP::decode_json($_[0]) }

package Test::Upsync::HTTP::Connection;

use Time::HiRes qw(time);

sub new {
    my ($class, $address) = @_;
    my $self = bless { buffer => '' }, $class;
    if ($address =~ /^unix:(.*)/) {
        $self->{socket} = IO::Socket::UNIX->new(Peer => $1);
    } else {
        my ($host, $port) = $address =~ /^(?:(.+):)?(\d+)$/;
        $host = '127.0.0.1' unless defined $host;
        $host =~ tr/[]//d;
        $self->{socket} = IO::Socket::IP->new(PeerHost => $host, PeerPort => $port, Timeout => 5);
    }
    $self->{error} = "connect: $!" unless $self->{socket};
    return $self;
}

sub request {
    my ($self, $method, $bytes, $timeout) = @_;
    return $self->send($bytes) ? $self->receive($method, $timeout) : $self->_answer;
}

sub send {
    my ($self, $bytes) = @_;
    return 0 unless $self->{socket};
    local $SIG{PIPE} = 'IGNORE';
    while (length $bytes) {
        my $sent = syswrite $self->{socket}, $bytes;
        unless ($sent) {
            # An early answer may be waiting though the rest of the request is refused.
            $self->{error} = "send: $!";
            return length $self->{buffer} || IO::Select->new($self->{socket})->can_read(0) ? 1 : 0;
        }
        substr $bytes, 0, $sent, '';
    }
    return 1;
}

sub receive {
    my ($self, $method, $timeout) = @_;
    $self->{deadline} = time + ($timeout // 5);
    delete $self->{error};
    $self->{raw} = '';

    my ($status, %headers);
    do {
        my $head = $self->_until("\r\n\r\n") // return $self->_answer;
        ($status, my @lines) = split /\r\n/, $head;
        $status = $status =~ m{^HTTP/1\.\d (\d+)} ? $1 : 0;
        %headers = ();
        for (@lines) {
            my ($name, $value) = /^([^:]+):\s*(.*)/ or next;
            $name = lc $name;
            $headers{$name} = exists $headers{$name} ? "$headers{$name}, $value" : $value;
        }
    } while $status == 100;

    my $body = $self->_body($method, $status, \%headers);
    return $self->_answer($status, \%headers, $body);
}

sub close { my $self = shift; close delete $self->{socket} if $self->{socket} }

sub _answer {
    my ($self, $status, $headers, $body) = @_;
    my $answer = {
        status => $status // 0, headers => $headers // {},
        body => $body // '', raw => $self->{raw} // '',
    };
    $answer->{error} = $self->{error} if defined $self->{error};
    return $answer;
}

sub _body {
    my ($self, $method, $status, $headers) = @_;
    return '' if $method eq 'HEAD' || $status == 204 || $status == 304;
    return $self->_chunks if ($headers->{'transfer-encoding'} // '') =~ /chunked/i;
    return $self->_take($headers->{'content-length'}) if defined $headers->{'content-length'};
    1 while $self->_read;
    delete $self->{error} if ($self->{error} // '') eq 'closed';
    return $self->_take(length $self->{buffer});
}

sub _chunks {
    my $self = shift;
    my $body = '';
    while (defined(my $line = $self->_until("\r\n"))) {
        my $size = hex $line;
        $body .= $self->_take($size);
        $self->_until("\r\n");
        last if $size == 0 || $self->{error};
    }
    return $body;
}

# The bytes up to the mark, without it; undef if they do not come.
sub _until {
    my ($self, $mark) = @_;
    my $at;
    while (($at = index $self->{buffer}, $mark) < 0) {
        $self->_read or return;
    }
    my $bytes = $self->_take($at + length $mark);
    return substr $bytes, 0, $at;
}

sub _take {
    my ($self, $size) = @_;
    while (length $self->{buffer} < $size) {
        $self->_read or last;
    }
    my $bytes = substr $self->{buffer}, 0, $size, '';
    $self->{raw} .= $bytes;
    return $bytes;
}

sub _read {
    my $self = shift;
    my $left = $self->{deadline} - time;
    if ($left <= 0 || !IO::Select->new($self->{socket})->can_read($left)) {
        $self->{error} = 'timed out';
        return 0;
    }
    my $read = sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer};
    $self->{error} = defined $read ? 'closed' : "receive: $!" unless $read;
    return $read;
}

1;
