package Test::Upsync::Chromium;

=head1 NAME

Test::Upsync::Chromium - a headless Chromium that a test drives

=head1 SYNOPSIS

    my $chromium = Test::Upsync::Chromium->new($t);
    my $page = $chromium->page("http://127.0.0.1:$port/status", width => 1280, height => 800);
    wait_until { $page->eval('document.title') eq 'Upstreams' } 10, 'shown';
    $page->screenshot('page.png');
    is_deeply([ $page->complaints ], [], 'no error, nothing that the policy forbids');
    $chromium->stop;
    $t->done;

It speaks the DevTools protocol (L<https://chromedevtools.github.io/devtools-protocol/>) over two
pipes: JSON, each message ended by a NUL. Its profile is in the test's folder. It is stopped before
C<< $t->done >>: it connects ahead of its requests, and nginx waits for those before it quits.

=cut

use strict;
use warnings;

use Fcntl ();
use File::Basename qw(dirname);
use File::Path qw(make_path);
use IO::Handle;
use IO::Select;
use JSON::PP ();
use MIME::Base64 qw(decode_base64);
use POSIX ();
use Time::HiRes qw(time);

use Test::Upsync::Process;

my $json = JSON::PP->new->utf8;

# Nothing but the pages that are asked for: no look for updates, no tips, no first run.
my @options = qw(
    --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe
    --no-first-run --no-default-browser-check --disable-background-networking --disable-extensions
    --disable-component-update --disable-sync --disable-default-apps --metrics-recording-only
    --disable-breakpad --password-store=basic --use-mock-keychain --hide-scrollbars --mute-audio
    --disable-background-timer-throttling --disable-renderer-backgrounding
    --disable-backgrounding-occluded-windows
);

=head1 METHODS

=head2 new(TEST, %opt)

A running browser, of the L<Test::Upsync> C<TEST>. It is C<chromium> in PATH, or C<TEST_CHROMIUM_BIN>.
C<options> are more of its own.

=cut

sub new {
    my ($class, $test, %opt) = @_;
    my $dir = $test->testdir . '/chromium';
    make_path($dir);
    my $self = bless { dir => $dir, ids => 0, sessions => {}, results => {}, buffer => '' }, $class;
    push @{ $test->{parts} }, $self;
    $self->_start(_binary(), @options, "--user-data-dir=$dir/profile", @{ $opt{options} // [] }, 'about:blank');
    return $self;
}

sub _binary {
    return $ENV{TEST_CHROMIUM_BIN} if $ENV{TEST_CHROMIUM_BIN};
    my ($file) = grep { -x } map { "$_/chromium" } split /:/, $ENV{PATH};
    return $file // die "no chromium found, set TEST_CHROMIUM_BIN\n";
}

# The browser reads its descriptor 3 and writes to 4.
sub _start {
    my ($self, @command) = @_;
    pipe(my $theirs_in, my $in) or die "pipe: $!\n";
    pipe(my $out, my $theirs_out) or die "pipe: $!\n";
    my $dir = $self->{dir};
    $self->{process} = Test::Upsync::Process->spawn(output => "$dir/output.log", code => sub {
        # Its own folders are the test's as well.
        @ENV{qw(HOME XDG_CONFIG_HOME XDG_CACHE_HOME)} = ($dir) x 3;
        # First out of the way: either may be the other's place.
        my ($read, $write) = map { fcntl($_, Fcntl::F_DUPFD(), 10) } $theirs_in, $theirs_out;
        POSIX::dup2($read, 3);
        POSIX::dup2($write, 4);
        POSIX::close($_) for $read, $write;
        no warnings 'exec';
        exec { $command[0] } @command or die "exec $command[0]: $!\n";
    });
    close $_ for $theirs_in, $theirs_out;
    $in->autoflush(1);
    @$self{qw(in out)} = ($in, $out);
    $self->command('Browser.getVersion');
    return;
}

=head2 command(METHOD, { PARAMETER => VALUE, ... }, SESSION)

Sends a command and returns the hash that answers it. Dies with the browser's error, or when there is
no answer within 30 s.

=cut

sub command {
    my ($self, $method, $parameters, $session) = @_;
    my $id = ++$self->{ids};
    my %message = (id => $id, method => $method, params => $parameters // {});
    $message{sessionId} = $session if $session;
    local $SIG{PIPE} = 'IGNORE';
    print { $self->{in} } $json->encode(\%message), "\0" or die "$method: $!\n";
    my $deadline = time + 30;
    until ($self->{results}{$id}) {
        $self->_read($deadline - time) or die "$method: no answer\n";
    }
    my $result = delete $self->{results}{$id};
    die "$method: $result->{error}{message}\n" if $result->{error};
    return $result->{result};
}

sub _read {
    my ($self, $seconds) = @_;
    return 0 if $seconds < 0 || !IO::Select->new($self->{out})->can_read($seconds);
    sysread $self->{out}, $self->{buffer}, 1 << 20, length $self->{buffer} or return 0;
    while ((my $end = index $self->{buffer}, "\0") >= 0) {
        my $message = $json->decode(substr $self->{buffer}, 0, $end);
        substr $self->{buffer}, 0, $end + 1, '';
        if ($message->{id}) {
            $self->{results}{ $message->{id} } = $message;
        } else {
            push @{ $self->{sessions}{ $message->{sessionId} // '' } }, $message;
        }
    }
    return 1;
}

=head2 page(URL, %opt)

A page in a tab of its own, see L</METHODS OF A PAGE>, when it has loaded. C<%opt> is that of
C<look>.

=cut

sub page {
    my ($self, $url, %opt) = @_;
    my $target = $self->command('Target.createTarget', { url => 'about:blank' })->{targetId};
    my $attached = $self->command('Target.attachToTarget', { targetId => $target, flatten => JSON::PP::true });
    my $page = Test::Upsync::Chromium::Page->new($self, $target, $attached->{sessionId});
    $page->look(%opt);
    $page->go($url);
    return $page;
}

=head2 stop

Ends the browser.

=cut

sub stop {
    my $self = shift;
    my $process = delete $self->{process} or return 1;
    eval { $self->command('Browser.close') };
    close $_ for grep { $_ } delete @$self{qw(in out)};
    return $process->stop('TERM', 10);
}

package Test::Upsync::Chromium::Page;

use Time::HiRes qw(time);

=head1 METHODS OF A PAGE

=cut

sub new {
    my ($class, $browser, $target, $session) = @_;
    my $self = bless { browser => $browser, target => $target, session => $session, complaints => [] }, $class;
    $self->command("$_.enable") for qw(Page Runtime Log Network);
    return $self;
}

=head2 command(METHOD, { PARAMETER => VALUE, ... })

A command of the DevTools protocol to this page.

=cut

sub command {
    my ($self, $method, $parameters) = @_;
    return $self->{browser}->command($method, $parameters, $self->{session});
}

=head2 look(%opt)

C<width> (1280) and C<height> (800), C<scale> (1) in pixels of the screen each, C<phone> with a finger for
a mouse, C<dark> as what is preferred.

=cut

sub look {
    my ($self, %opt) = @_;
    $self->command('Emulation.setDeviceMetricsOverride', {
        width => $opt{width} // 1280, height => $opt{height} // 800, deviceScaleFactor => $opt{scale} // 1,
        mobile => $opt{phone} ? JSON::PP::true : JSON::PP::false,
    });
    my $scheme = $opt{dark} ? 'dark' : 'light';
    $self->command('Emulation.setEmulatedMedia',
        { features => [ { name => 'prefers-color-scheme', value => $scheme } ] });
    return $self;
}

=head2 go(URL), reload

Goes there, or loads the page again, and waits until it has loaded.

=cut

sub go {
    my ($self, $url) = @_;
    $self->_forget('Page.loadEventFired');
    my $answer = $self->command('Page.navigate', { url => $url });
    die "$url: $answer->{errorText}\n" if $answer->{errorText};
    # Another place of the same document.
    return $self unless $answer->{loaderId};
    return $self->_loaded;
}

sub reload {
    my $self = shift;
    $self->_forget('Page.loadEventFired');
    $self->command('Page.reload');
    return $self->_loaded;
}

sub _loaded {
    my $self = shift;
    my $deadline = time + 30;
    until (grep { $_->{method} eq 'Page.loadEventFired' } $self->_events) {
        $self->{browser}->_read($deadline - time) or die "the page does not load\n";
    }
    return $self;
}

sub _events { return @{ $_[0]{browser}{sessions}{ $_[0]{session} } // [] } }

sub _forget {
    my ($self, $method) = @_;
    $_[0]{browser}{sessions}{ $self->{session} } = [ grep { $_->{method} ne $method } $self->_events ];
    return;
}

=head2 eval(EXPRESSION)

The value of an expression of JavaScript in the page, waited for if it is a promise. Dies with what it
throws. It may be a list of statements in C<{}>, as those of an C<async> function.

=cut

sub eval {
    my ($self, $expression) = @_;
    $expression = "(async () => $expression)()" if $expression =~ /^\{/;
    my $answer = $self->command('Runtime.evaluate', {
        expression => $expression, awaitPromise => JSON::PP::true, returnByValue => JSON::PP::true,
    });
    if (my $details = $answer->{exceptionDetails}) {
        die(($details->{exception}{description} // $details->{text}) . "\n");
    }
    return $answer->{result}{value};
}

=head2 type(TEXT), press(KEY)

Into the element that has the focus; C<KEY> is as C<Tab>, C<Space>, C<Enter>, C<ArrowDown>.

=cut

sub type {
    my ($self, $text) = @_;
    $self->command('Input.insertText', { text => $text });
    return;
}

my %keys = (Tab => 9, Enter => 13, Space => 32, Escape => 27, ArrowUp => 38, ArrowDown => 40);

sub press {
    my ($self, $key) = @_;
    my $text = { Space => ' ', Enter => "\r" }->{$key};
    my %event = (key => $key eq 'Space' ? ' ' : $key, code => $key, windowsVirtualKeyCode => $keys{$key});
    $self->command('Input.dispatchKeyEvent', { %event, type => 'keyDown', defined $text ? (text => $text) : () });
    $self->command('Input.dispatchKeyEvent', { %event, type => 'keyUp' });
    return;
}

=head2 screenshot(FILE)

A picture of what is seen, as PNG. Its folder is made; returns FILE.

=cut

sub screenshot {
    my ($self, $path) = @_;
    # What has just changed is painted first.
    $self->eval('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))');
    my $shot = $self->command('Page.captureScreenshot', { format => 'png' });
    File::Path::make_path(File::Basename::dirname($path));
    open my $file, '>:raw', $path or die "$path: $!\n";
    print $file MIME::Base64::decode_base64($shot->{data});
    CORE::close $file or die "$path: $!\n";
    return $path;
}

=head2 complaints

All that went wrong in the page since it was asked last: uncaught exceptions, what it wrote to the
console as errors or warnings, what a policy forbade, what could not be fetched. Texts.

=cut

sub complaints {
    my $self = shift;
    $self->eval('new Promise(requestAnimationFrame).then(() => 0)');
    my @events = $self->_events;
    $self->{browser}{sessions}{ $self->{session} } = [];
    return map { _complaint($_->{method}, $_->{params}) } @events;
}

sub _complaint {
    my ($method, $event) = @_;
    if ($method eq 'Runtime.exceptionThrown') {
        my $details = $event->{exceptionDetails};
        return $details->{exception}{description} // $details->{text};
    }
    if ($method eq 'Runtime.consoleAPICalled' && $event->{type} =~ /^(?:error|warning|assert)$/) {
        return join ' ', map { $_->{description} // $_->{value} // '' } @{ $event->{args} };
    }
    if ($method eq 'Log.entryAdded' && $event->{entry}{level} =~ /^(?:error|warning)$/) {
        return "$event->{entry}{source}: $event->{entry}{text}";
    }
    return;
}

=head2 events(METHOD)

What the protocol told of this page by this name since C<complaints> was asked last: parameters, as
hashes. C<requests> are the addresses that the page has asked for.

=cut

sub events {
    my ($self, $method) = @_;
    # What was on its way is there when a later command is answered.
    $self->eval('0');
    return map { $_->{params} } grep { $_->{method} eq $method } $self->_events;
}

sub requests { return map { $_->{request}{url} } $_[0]->events('Network.requestWillBeSent') }

=head2 close

Closes the tab.

=cut

sub close {
    my $self = shift;
    $self->{browser}->command('Target.closeTarget', { targetId => $self->{target} });
    return;
}

1;
