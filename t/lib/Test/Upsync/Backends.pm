package Test::Upsync::Backends;

=head1 NAME

Test::Upsync::Backends - servers to balance over, each answering with its own address

One stock nginx, without our module. F</> is answered C<hello world by ADDRESS>, F</ping>
C<pong by ADDRESS>. Made by C<< $t->backends >>.

=cut

use strict;
use warnings;

use parent 'Test::Upsync::Nginx';

=head1 METHODS

=head2 new(listen => [ADDRESS, ...], http => TEXT, server => TEXT, location => TEXT)

ADDRESS is C<IP:PORT>, C<[IPv6]:PORT> or C<unix:PATH>. The TEXTs are directives added to the
http block, to each server, and to its C<location />; C<options> is added to each C<listen>.

=cut

sub new {
    my ($class, %opt) = @_;
    my $self = $class->SUPER::new(%opt);
    $self->{options} //= '';
    $self->{$_} //= '' for qw(http server location);
    my $servers = join '', map { $self->_server($_) } @{ $self->{listen} };
    open my $conf, '>', "$self->{dir}/nginx.conf" or die "$self->{dir}/nginx.conf: $!\n";
    print $conf <<"EOF";
$self->{globals}
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    $self->{globals_http}
    log_format test '\$msec \$backend \$status \$request_method \$request_uri \$connection';
    default_type text/plain;
    keepalive_requests 1000000;
    server_names_hash_bucket_size 128;
    $self->{http}
$servers}
EOF
    close $conf;
    return $self;
}

sub _server {
    my ($self, $address) = @_;
    return <<"EOF";
    server {
        listen $address $self->{options};
        set \$backend "$address";
        access_log access.log test;
        $self->{server}
        location / {
            $self->{location}
            return 200 "hello world by $address\\n";
        }
        location = /ping { return 200 "pong by $address\\n"; }
    }
EOF
}

sub start {
    my $self = shift;
    # A killed nginx leaves its unix sockets, which the next one cannot bind.
    unlink map { /^unix:(.*)/ } @{ $self->{listen} } unless $self->alive;
    return $self->SUPER::start;
}

=head2 addresses, ports

Where they listen.

=cut

sub addresses { return @{ $_[0]{listen} } }

sub ports { return map { /:(\d+)$/ } $_[0]->addresses }

=head2 requests(SINCE)

The requests that came, since a time or all: hashes of C<time> (when it was answered),
C<address>, C<status>, C<method>, C<uri>, C<connection>. C<counts(SINCE)> is a hash of address
to number.

=cut

sub requests {
    my ($self, $since) = @_;
    my @requests;
    for (split /\n/, Test::Upsync::Nginx::_slurp("$self->{dir}/access.log")) {
        my %request;
        @request{qw(time address status method uri connection)} = split ' ';
        push @requests, \%request if !$since || $request{time} >= $since;
    }
    return @requests;
}

sub counts {
    my ($self, $since) = @_;
    my %counts = map { $_ => 0 } $self->addresses;
    $counts{ $_->{address} }++ for $self->requests($since);
    return \%counts;
}

1;
