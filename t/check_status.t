#!/usr/bin/perl

# The status pages in each format, read by parsers that know nothing of this module, with names of
# upstreams that want to be something else in one of them; check_fail_open; the variables for logs; and
# what verdicts of checks outlive.

use strict;
use warnings;

use Digest::SHA qw(sha256_base64);
use Encode qw(decode encode);
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::App;

my $python = (grep { -x } '/usr/bin/python3')[0];
my $promtool = (grep { -x } map { "$_/promtool" } split /:/, $ENV{PATH})[0];

my @hostile = (
    'quote"quote', "it's", '<b>bold</b>&amp;<', '</td></tr><script>alert(1)</script>', 'back\\slash\\', 'a space',
    'comma,name', "\xc3\xa9\xe4\xb8\xad\xe6\x96\x87", "new\nline", "tab\there", '$dollar{}#;', '"} 1', '0',
    "no utf-8: \xff",
);

binmode $_, ':encoding(UTF-8)' for map { Test::More->builder->$_ } qw(output failure_output todo_output);

my $t = Test::Upsync->new;
my $consul = $t->consul;
my ($live) = $t->backends(1)->addresses;
my $dead = '127.0.0.1:' . $t->free_port;
my @apps = map { Test::Upsync::App->new($t)->run } 1 .. 4;

# As nginx reads them.
sub quoted { my $text = shift; return '"' . $text =~ s/(["\\])/\\$1/gr . '"' }

my $tcp = 'check interval=200 rise=1 fall=1 timeout=3000 type=tcp';
my $hostile = join '', map { "upstream ${\quoted($_)} { server $live; server $dead; $tcp; }\n" } @hostile;
my $http = 'check interval=100 rise=1 fall=1 timeout=3000 type=http default_down=false;';
my $servers = join ' ', map { 'server ' . $_->address . ' max_fails=0;' } @apps;

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    log_format picks '\$request_uri|\$status|\$upstream_addr|\$upsync_upstream|\$upsync_source|\$upsync_reason|';
    $hostile
    upstream open { $servers $http check_fail_open 50; }
    upstream posted { server 127.0.0.1:1 down; }
    upstream kv {
        upsync %%CONSUL%%/v1/kv/upstreams/kv/ upsync_type=consul upsync_interval=50ms;
        $http
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location = /check { check_status; }
        location = /check/html { check_status html; }
        location = /check/csv { check_status csv; }
        location = /check/json { check_status json; }
        location = /check/prometheus { check_status prometheus; }
        location = /upsync { upsync_status; }
        location = /upsync/html { upsync_status html; }
        location = /upsync/json { upsync_status json; }
        location = /upsync/prometheus { upsync_status prometheus; }
        location /dyups/ { dyups_interface; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        check_status json;
        location /csv { check_status csv; }
        location /text { return 200 "text\\n"; }
    }
    server {
        listen 127.0.0.1:%%PORT_2%%;
        location /redirected/ { error_page 502 /sorry; proxy_pass http://posted; }
        location = /sorry { return 200; }
        access_log picks.log picks;
        location /open { proxy_pass http://open; }
        location /kv { proxy_pass http://kv; }
        location /posted { proxy_pass http://posted; }
        location /none { return 204; }
    }
}
EOF

$consul->kv_put('upstreams/kv/' . $apps[0]->address, '{"max_fails":0}');
$consul->kv_put('upstreams/kv/' . $apps[1]->address, '{"max_fails":0,"down":1}');
$consul->kv_put('upstreams/kv/' . $apps[2]->address, '{"max_fails":0}');
$t->run;

# How the parsers are asked for a page, from which they make JSON.
my $parser = $t->write_file('parse.py', <<'EOF');
import csv, io, json, sys
from html.parser import HTMLParser

VOID = {'meta', 'link', 'br', 'hr', 'img', 'input', 'col', 'area', 'base', 'source', 'track', 'wbr', 'embed'}

class Page(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.rows, self.texts, self.attributes, self.errors = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag == 'tr':
            self.rows.append({'attributes': dict(attributes), 'cells': []})
        if tag in ('td', 'th'):
            self.rows[-1]['cells'].append('')
        self.attributes += [[tag, name, value] for name, value in attributes]
        self.texts.append([tag, ''])
        if tag not in VOID:
            self.open.append((tag, len(self.texts) - 1))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.errors.append('</%s> in %s' % (tag, [name for name, _ in self.open]))
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1][1]][1] += data
            if self.open[-1][0] in ('td', 'th'):
                self.rows[-1]['cells'][-1] += data

text = open(sys.argv[2], 'rb').read().decode('utf-8')
if sys.argv[1] == 'csv':
    print(json.dumps(list(csv.reader(io.StringIO(text, newline=''), strict=True))))
else:
    page = Page()
    page.feed(text)
    page.close()
    page.errors += ['never closed: %s' % name for name, _ in page.open]
    print(json.dumps(page.__dict__, default=str))
EOF

sub parsed {
    my ($kind, $text) = @_;
    my $file = $t->write_file("page.$kind", $text);
    my $json = qx($python '$parser' $kind '$file' 2>&1);
    my $parsed = eval { JSON::PP::decode_json($json) };
    diag $json unless defined $parsed;
    return $parsed;
}

# Samples of Prometheus's text: [name, { label => value }, value]; a line that is none is in the
# second list.
sub samples {
    my $text = decode('UTF-8', shift);
    my (@samples, @wrong);
    for (split /\n/, $text) {
        next if /^# (?:HELP|TYPE) /;
        unless (/^([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\]|\\[\\"n])*",?)*)\})? (\S+)$/) {
            push @wrong, $_;
            next;
        }
        my ($name, $labels, $value) = ($1, $2 // '', $3);
        my %labels;
        while ($labels =~ /(\w+)="((?:[^"\\]|\\.)*)"/g) {
            my ($label, $escaped) = ($1, $2);
            $labels{$label} = $escaped =~ s/\\(.)/$1 eq 'n' ? "\n" : $1/ger;
        }
        push @samples, [ $name, \%labels, $value ];
    }
    return (\@samples, \@wrong);
}

# What promtool says: its exit status and its output.
sub promtool {
    my $text = shift;
    my $file = $t->write_file('metrics', $text);
    my $output = qx('$promtool' check metrics <'$file' 2>&1);
    return ($? >> 8, $output);
}

sub get { return http_get($t->port(0), @_) }

sub has_type { my ($answer, $type) = @_; return ($answer->{headers}{'content-type'} // '') =~ m{^\Q$type\E\s*(?:;|$)} }

# A name as the pages have it; bytes that are none of UTF-8 are written out.
sub characters { return decode('UTF-8', shift =~ s/([\xff])/sprintf '\\x%02x', ord $1/ger) }

sub encoded { return shift =~ s/([^A-Za-z0-9])/sprintf '%%%02X', ord $1/ger }

my %known = map { characters($_) => 1 } @hostile;

# Of rows of check_status: those of the hostile upstreams, as "name|address|verdict|type", sorted.
sub hostile_rows { return [ sort map { join '|', @$_[ 0 .. 3 ] } grep { $known{ $_->[0] } } @_ ] }

sub expected { my @verdicts = @_; return [ sort map { my $name = characters($_); map { "$name|" . ($_ eq 'up' ? $live : $dead) . "|$_|tcp" } @verdicts } @hostile ] }

sub from_json { return map { [ @$_{qw(upstream name status type)} ] } @{ $_[0]{servers}{server} } }

sub from_csv { return map { [ @$_[ 1, 2, 3, 6 ] ] } @{ parsed('csv', $_[0]) // [] } }

sub from_html { return map { [ @{ $_->{cells} }[ 1, 2, 3, 6 ] ] } grep { $_->{cells}[0] =~ /^\d+$/ } @{ $_[0]{rows} } }

sub from_prometheus {
    my ($samples) = samples(shift);
    return map { [ @{ $_->[1] }{qw(upstream name)}, $_->[2] ? 'up' : 'down', $_->[1]{type} ] }
        grep { $_->[0] eq 'nginx_upstream_server_active' } @$samples;
}

my @rows;
wait_until {
    @rows = from_json(json(get('/check/json')->{body}));
    join("\n", @{ hostile_rows(@rows) }) eq join "\n", @{ expected('up', 'down') };
} 20, 'all are checked' or diag explain hostile_rows(@rows);
wait_until { 3 == grep { $_->[0] eq 'kv' } from_json(json(get('/check/json')->{body})) } 10, 'and Consul has told its servers';

subtest 'check_status: JSON' => sub {
    for my $uri ('/check/json', '/check?format=json', '/check/csv?format=json', '/check?x=1&format=json') {
        my $answer = get($uri);
        ok(has_type($answer, 'application/json'), "$uri: type") or diag $answer->{headers}{'content-type'};
        my $servers = json($answer->{body})->{servers};
        is_deeply(hostile_rows(from_json({ servers => $servers })), expected('up', 'down'), 'all of them');
        is($servers->{total}, @{ $servers->{server} }, 'total');
        is($servers->{up} + $servers->{down}, $servers->{total}, 'up and down');
        like($servers->{generation}, qr/^\d+$/, 'generation');
        is_deeply([ sort keys %$_ ], [ sort qw(index upstream name status rise fall type port) ], 'fields') for $servers->{server}[0];
        my %index = map { $_->{index} => 1 } @{ $servers->{server} };
        is(keys %index, @{ $servers->{server} }, 'each has an index of its own');
    }
};

subtest 'check_status: csv' => sub {
    plan skip_all => 'no python3 here' unless $python;
    for my $uri ('/check/csv', '/check?format=csv') {
        my $answer = get($uri);
        ok(has_type($answer, 'text/plain'), "$uri: type");
        my $lines = parsed('csv', $answer->{body}) // [];
        is(scalar(grep { @$_ != 8 } @$lines), 0, 'eight fields in each line');
        is_deeply(hostile_rows(from_csv($answer->{body})), expected('up', 'down'), 'all of them');
    }
    like(get('/check/csv?upstream=open')->{body}, qr/\A(?:\d+,open,127\.0\.0\.1:\d+,up,\d+,0,http,0\n){4}\z/, 'plain names are not quoted');
};

subtest 'check_status: html' => sub {
    plan skip_all => 'no python3 here' unless $python;
    for my $uri ('/check', '/check/html', '/check/json?format=html') {
        my $answer = get($uri);
        ok(has_type($answer, 'text/html'), "$uri: type");
        my $page = parsed('html', $answer->{body});
        is("@{ $page->{errors} }", '', 'well formed');
        my @rows = from_html($page);
        is_deeply(hostile_rows(@rows), expected('up', 'down'), 'all of them');
        is_deeply($page->{rows}[0]{cells}, [ 'Index', 'Upstream', 'Name', 'Status', 'Rise counts', 'Fall counts', 'Check type',
            'Check port' ], 'the head of the table');
        my %text = map { @$_ } reverse @{ $page->{texts} };
        is($text{$_}, 'Nginx http upstream check status', $_) for qw(title h1);
        like($text{h2}, qr/^Check upstream server number: ${\scalar @rows}, generation: \d+$/, 'h2');
        is(scalar(grep { ($_->{attributes}{bgcolor} // '') eq '#FF0000' && $_->{cells}[3] ne 'down' } @{ $page->{rows} }), 0, 'none is red that is up');
        is(scalar(grep { ($_->{attributes}{bgcolor} // '') ne '#FF0000' && ($_->{cells}[3] // '') eq 'down' } @{ $page->{rows} }), 0,
            'none that is down is not');
        is(scalar(grep { $_->[0] eq 'script' } @{ $page->{texts} }), 0, 'no script');
    }
};

subtest 'check_status: prometheus' => sub {
    for my $uri ('/check/prometheus', '/check?format=prometheus') {
        my $answer = get($uri);
        ok(has_type($answer, 'text/plain'), "$uri: type");
        my ($samples, $wrong) = samples($answer->{body});
        is("@$wrong", '', 'each line is one of this format');
        is_deeply(hostile_rows(from_prometheus($answer->{body})), expected('up', 'down'), 'all of them');
        my %count = map { $_->[0] => $_->[2] } grep { $_->[0] =~ /^nginx_upstream_count_/ } @$samples;
        is($count{nginx_upstream_count_total}, $count{nginx_upstream_count_up} + $count{nginx_upstream_count_down}, 'the counts');
    }
    SKIP: {
        skip 'no promtool here', 1 unless $promtool;
        my ($status, $output) = promtool(get('/check/prometheus')->{body});
        # 3 is for names that are not as it likes them; they are those of Tengine.
        ok($status == 0 || $status == 3, 'promtool reads it') or diag $output;
        unlike($output, qr/error while linting/, 'without a fault');
    }
};

subtest 'check_status: status=' => sub {
    for my $verdict ('up', 'down') {
        my $servers = json(get("/check?format=json&status=$verdict")->{body});
        is_deeply(hostile_rows(from_json($servers)), expected($verdict), "JSON: $verdict");
        is($servers->{servers}{total}, @{ $servers->{servers}{server} }, 'total');
        is_deeply(hostile_rows(from_prometheus(get("/check?format=prometheus&status=$verdict")->{body})), expected($verdict), 'prometheus');
        next unless $python;
        is_deeply(hostile_rows(from_csv(get("/check?status=$verdict&format=csv")->{body})), expected($verdict), 'csv');
        is_deeply(hostile_rows(from_html(parsed('html', get("/check?status=$verdict")->{body}))), expected($verdict), 'html');
    }
};

subtest 'check_status: upstream=' => sub {
    for my $name (grep { !/utf-8/ } @hostile) {
        my $uri = '?upstream=' . encoded($name);
        my @rows = from_json(json(get("/check/json$uri")->{body}));
        is_deeply([ map { $_->[0] } @rows ], [ (characters($name)) x 2 ], characters($name));
        my @down = from_json(json(get("/check/json$uri&status=down")->{body}));
        is_deeply([ map { $_->[1] } @down ], [ $dead ], 'and down');
    }
    is(json(get('/check/json?upstream=unknown')->{body})->{servers}{total}, 0, 'an unknown name: none');
    is(get('/check/csv?upstream=unknown')->{body}, '', 'in csv too');
    is(get('/check/csv?upstream=unknown')->{status}, 200, 'which is no fault');
};

subtest 'arguments that are bad' => sub {
    my $mark = $t->log_mark;
    my $all = @{ expected('up', 'down') };
    for my $format ('nonsense', '', 'jso', 'jsonx', 'a%0aevil%0d%1b', 'x' x 2000) {
        ok(has_type(get("/check/csv?format=$format"), 'text/plain'), 'format=' . substr($format, 0, 20) . ': the default')
    }
    ok(has_type(get('/upsync/json?format=nonsense'), 'application/json'), 'of upsync_status too');
    is(@{ hostile_rows(from_json(json(get("/check/json?status=$_")->{body}))) }, $all, "status=$_: all") for 'nonsense', '', 'upp';
    $t->log_like(qr/\Q"nonsense"\E/, 'they are logged', $mark);
    is(scalar(grep { !m{^\d{4}/\d\d/\d\d } } split /\n/, $t->log($mark)), 0, 'each in a line') or diag $t->log($mark);
    unlike($t->log($mark), qr/[\x00-\x08\x0b-\x1f]/, 'without bytes that a terminal obeys');
};

subtest 'methods' => sub {
    for my $uri (map { my $page = $_; map { "$page/$_" } qw(html json prometheus) } '/check', '/upsync') {
        my $connection = http_connect($t->port(0));
        my $get = http_get(0, $uri, connection => $connection);
        is($get->{status}, 200, "GET $uri");
        my $head = http('HEAD', 0, $uri, connection => $connection);
        is($head->{status}, 200, 'HEAD');
        is($head->{headers}{'content-type'}, $get->{headers}{'content-type'}, 'as GET');
        is(http_get(0, '/check/csv?upstream=unknown', connection => $connection)->{status}, 200, 'and without a body');
        is(http($_, $t->port(0), $uri, body => 'a=1')->{status}, 405, $_) for qw(POST PUT DELETE);
    }
};

subtest 'check_status of a server' => sub {
    for my $uri ('/', '/any/where') {
        my $answer = http_get($t->port(1), $uri);
        ok(has_type($answer, 'application/json'), $uri);
        is_deeply(hostile_rows(from_json(json($answer->{body}))), expected('up', 'down'), 'all of them');
    }
    ok(has_type(http_get($t->port(1), '/csv'), 'text/plain'), 'a location has its own');
    is(http_get($t->port(1), '/text')->{body}, "text\n", 'or another answer');
};

subtest 'no server has a check' => sub {
    my $port = $t->free_port;
    my $nginx = $t->another_nginx(<<"EOF")->run;
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app { server 127.0.0.1:1; }
    server {
        listen 127.0.0.1:$port;
        location / { proxy_pass http://app; }
        location /check { check_status; }
        location /upsync { upsync_status; }
    }
}
EOF
    my %body = map {
        my $answer = http_get($port, "/check?format=$_");
        is($answer->{status}, 200, $_);
        ($_ => $answer->{body})
    } qw(html csv json prometheus);
    is($body{csv}, '', 'csv: nothing');
    is_deeply(json($body{json})->{servers}{server}, [], 'JSON: an empty list');
    is(json($body{json})->{servers}{total}, 0, 'of none');
    my ($samples, $wrong) = samples($body{prometheus});
    is("@$wrong", '', 'prometheus');
    is_deeply({ map { $_->[0] => $_->[2] } grep { $_->[0] =~ /total|up$|down$/ } @$samples },
        { map { ("nginx_upstream_count_$_" => 0) } qw(total up down) }, 'none');
    if ($python) {
        my $page = parsed('html', $body{html});
        is("@{ $page->{errors} }", '', 'html');
        is_deeply([ from_html($page) ], [], 'no row');
    }
    is(http_get($port, "/upsync?format=$_")->{status}, 200, "upsync_status: $_") for qw(html json prometheus);
    $nginx->stop;
};

subtest 'upsync_status: JSON' => sub {
    for my $uri ('/upsync/json', '/upsync?format=json') {
        my $answer = get($uri);
        ok(has_type($answer, 'application/json'), "$uri: type");
        my %upstream = map { $_->{name} => $_ } @{ json($answer->{body})->{upstreams} };
        my @rows;
        for my $name (keys %known) {
            my $servers = ($upstream{$name} // {})->{servers} // [];
            push @rows, map { "$name|$_->{server}|" . ($_->{check}{up} ? 'up' : 'down') . '|' . $upstream{$name}{check}{type} } @$servers;
        }
        is_deeply([ sort @rows ], expected('up', 'down'), 'all of them');
        my ($out) = grep { $_->{server} eq $dead } @{ $upstream{'a space'}{servers} };
        is_deeply([ @$out{qw(state out)}, $out->{check}{last}{result} ], [ 'down', ['check'], 'connect refused' ], 'and why one is out');
        is_deeply([ map { $upstream{$_}{source} } qw(kv open) ], [ 'consul', 'config' ], 'the sources');
        like($upstream{kv}{follow}{url}, qr{^\Q${\$consul->address}\E/v1/kv/upstreams/kv/$}, 'what it follows');
        cmp_ok($upstream{kv}{follow}{index}, '>', 0, "Consul's index");
    }
    my @one = @{ json(get('/upsync/json?upstream=' . encoded($hostile[0]))->{body})->{upstreams} };
    is_deeply([ map { $_->{name} } @one ], [ $hostile[0] ], 'upstream=: one');
};

subtest 'upsync_status: prometheus' => sub {
    my $answer = get('/upsync/prometheus');
    ok(has_type($answer, 'text/plain'), 'type');
    my ($samples, $wrong) = samples($answer->{body});
    is("@$wrong", '', 'each line is one of this format');
    my %of = map { $_->[1]{upstream} => 1 } grep { defined $_->[1]{upstream} } @$samples;
    is_deeply([ sort grep { $known{$_} } keys %of ], [ sort keys %known ], 'all upstreams are there');
    my %seen;
    my @twice = grep { my $sample = $_; $seen{ join "\0", $sample->[0], map { "$_=$sample->[1]{$_}" } sort keys %{ $sample->[1] } }++ } @$samples;
    is(scalar @twice, 0, 'each series once');
    is(scalar(grep { grep { /^(?:index|status|state)$/ } keys %{ $_->[1] } } grep { $_->[0] =~ /_server_/ && $_->[0] !~ /_(?:state|out)$/ } @$samples), 0,
        'nothing in the labels that changes');
    SKIP: {
        skip 'no promtool here', 1 unless $promtool;
        my ($status, $output) = promtool($answer->{body});
        is($status, 0, 'promtool has nothing to say') or diag $output;
    }
};

# Whatever else the page does, a browser lets it: its policy allows what is in it, and nothing else.
subtest 'upsync_status: html' => sub {
    plan skip_all => 'no python3 here' unless $python;
    for my $uri ('/upsync', '/upsync/html', '/upsync/json?format=html') {
        my $answer = get($uri);
        ok(has_type($answer, 'text/html'), "$uri: type");
        my $page = parsed('html', $answer->{body});
        is("@{ $page->{errors} }", '', 'well formed');
        my $policy = $answer->{headers}{'content-security-policy'} // '';
        like($policy, qr/default-src 'none'/, 'its policy is strict');
        unlike($policy, qr/unsafe-|\*|https?:|data:/, 'without exceptions');
        for (grep { $_->[0] =~ /^(?:script|style)$/ } @{ $page->{texts} }) {
            my ($tag, $text) = @$_;
            my $hash = sha256_base64(encode('UTF-8', $text));
            $hash .= '=' while length($hash) % 4;
            like($policy, qr/\b$tag-src [^;]*'sha256-\Q$hash\E'/, "and allows its $tag");
        }
        is(join(' ', map { "$_->[0] $_->[1]=$_->[2]" } grep { $_->[1] =~ /^on|^style$/ } @{ $page->{attributes} }), '', 'no attribute that it forbids');
        is(join(' ', map { "$_->[0] $_->[1]=$_->[2]" } grep { $_->[1] =~ /^(?:src|href|action|data|srcset)$/ && $_->[2] !~ /^[#?]/ } @{ $page->{attributes} }),
            '', 'nothing from outside');
    }
};

sub upsync { my $name = shift; return json(get("/upsync/json?upstream=$name")->{body})->{upstreams}[0] }

# The state of the servers of an upstream, in the order of @apps.
sub states {
    my ($name, $code) = @_;
    my %state = map { $_->{server} => $code->($_) } @{ upsync($name)->{servers} };
    return join ' ', map { $state{ $_->address } // '-' } @apps;
}

sub verdicts { return states(shift, sub { $_[0]{check}{up} ? 'up' : 'down' }) }

sub outs { return states(shift, sub { join(',', @{ $_[0]{out} }) || 'in' }) }

# So many requests: what each line of the log says, without the URI.
my $requests = 0;

sub requests {
    my ($way, $number) = @_;
    my $uri = "/$way/" . ++$requests;
    http_get($t->port(2), $uri) for 1 .. $number;
    my @lines;
    wait_until { $number == (@lines = $t->read_file('picks.log') =~ /^\Q$uri\E\|(.*)\n/mg) } 5;
    return map { my %is; @is{qw(status tried upstream source reason)} = split /\|/, $_, -1; \%is } @lines;
}

# The values that a field has, in all requests.
sub values_are {
    my ($field, $expected, @requests) = @_;
    # nginx writes "-" for a variable that has no value.
    my %values = map { $_->{$field} =~ s/^-$//r => 1 } @requests;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(join(' or ', map { qq{"$_"} } sort keys %values), join(' or ', map { qq{"$_"} } @$expected), $field);
}

# Some of the requests came by a server that is out, for this reason; others may have met none.
sub some_passed_over {
    my ($reason, @requests) = @_;
    my %values = map { $_->{reason} => 1 } @requests;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok(delete $values{$reason} && !grep({ !/^-?$/ } keys %values), "reason: $reason") || diag join ' ', map { $_->{reason} } @requests;
}

sub tried {
    my %tried = map { $_ => 1 } map { split /, /, $_->{tried} } @_;
    return join ' ', map { $tried{ $_->address } ? 'yes' : 'no' } @apps;
}

sub logged { my ($mark, $level, $text) = @_; return scalar(() = $t->log($mark) =~ /\[$level\].* upsync: upstream "open": \Q$text\E$/mg) }

subtest 'check_fail_open' => sub {
    my ($ignored, $count) = ('checks would take 3 of 4 servers out: their verdicts are ignored', 'verdicts of checks count again');
    my $mark = $t->log_mark;
    is(verdicts('open'), 'up up up up', 'four servers');
    my @requests = requests('open', 8);
    is(tried(@requests), 'yes yes yes yes', 'serve');
    values_are('reason', [''], @requests);

    $_->kill for @apps[ 0, 1 ];
    wait_until { verdicts('open') eq 'down down up up' } 15, 'two are killed';
    is(outs('open'), 'check check in in', 'and out: half is not more than half');
    ok(!upsync('open')->{check}{open}, 'nothing is ignored');
    is(tried(@requests = requests('open', 12)), 'no no yes yes', 'the other two serve');
    values_are('status', ['200'], @requests);
    some_passed_over('check', @requests);
    is(logged($mark, 'warn', $ignored), 0, 'nothing is told');

    $apps[2]->kill;
    wait_until { verdicts('open') eq 'down down down up' } 15, 'a third is killed';
    wait_until { upsync('open')->{check}{open} } 5, 'now verdicts are ignored, as is shown';
    is(outs('open'), 'in in in in', 'none is out');
    is(tried(@requests = requests('open', 12)), 'yes yes yes yes', 'all are tried');
    values_are('status', ['200'], @requests);
    values_are('reason', [''], @requests);
    my ($fall) = map { $_->{check}{fall} } grep { $_->{server} eq $apps[2]->address } @{ upsync('open')->{servers} };
    wait_until { grep { $_->{check}{fall} > $fall + 3 } @{ upsync('open')->{servers} } } 10, 'checks go on';
    ok($t->reload, 'reloaded');
    is(outs('open'), 'in in in in', 'still');
    is(logged($mark, 'warn', $ignored), 1, 'which was told once');
    is(logged($mark, 'notice', $count), 0, 'and is not over');

    $apps[2]->run;
    wait_until { verdicts('open') eq 'down down up up' } 15, 'one is back';
    wait_until { !upsync('open')->{check}{open} } 5, 'verdicts count again';
    is(outs('open'), 'check check in in', 'two are out');
    is(tried(@requests = requests('open', 12)), 'no no yes yes', 'the others serve');
    is(logged($mark, 'notice', $count), 1, 'told once');
    is(logged($mark, 'warn', $ignored), 1, 'and no more');
    $_->run for @apps[ 0, 1 ];
    wait_until { verdicts('open') eq 'up up up up' } 15, 'all are back';
};

subtest 'variables for logs' => sub {
    my @requests = requests('open', 4);
    values_are('upstream', ['open'], @requests);
    values_are('source', ['config'], @requests);
    values_are('reason', [''], @requests);

    # Of three, the second is taken down by the operator.
    wait_until { verdicts('kv') eq 'up up up -' } 10, 'servers of Consul';
    @requests = requests('kv', 8);
    values_are('upstream', ['kv'], @requests);
    values_are('source', ['consul'], @requests);
    # What the operator keeps out is not come by, where there are others.
    values_are('reason', [''], @requests);
    $apps[2]->kill;
    wait_until { verdicts('kv') eq 'up up down -' } 15, 'one is killed';
    some_passed_over('check', requests('kv', 8));
    $apps[0]->kill;
    wait_until { verdicts('kv') eq 'down up down -' } 15, 'another one is killed';
    @requests = requests('kv', 4);
    values_are('status', ['502'], @requests);
    values_are('reason', ['down,check'], @requests);
    $apps[0]->run;

    my $posted = http('POST', $t->port(0), '/dyups/upstream/posted', body => "$http server ${\$apps[2]->address}; server ${\$apps[3]->address};");
    is($posted->{status}, 200, 'a list is posted') or diag $posted->{body};
    wait_until { verdicts('posted') eq '- - down up' } 15, 'it is checked';
    @requests = requests('posted', 8);
    values_are('upstream', ['posted'], @requests);
    values_are('source', ['api'], @requests);
    some_passed_over('check', @requests);

    $apps[3]->kill;
    wait_until { verdicts('posted') eq '- - down down' } 15, 'both are dead';
    @requests = requests('posted', 4);
    values_are('status', ['502'], @requests);
    values_are('reason', ['check'], @requests);
    values_are('source', ['api'], @requests);
    @requests = requests('redirected', 2);
    values_are('upstream', ['posted'], @requests);
    values_are('reason', ['check'], @requests);
    my ($none) = requests('none', 1);
    like(join('|', @$none{qw(upstream source reason)}), qr/^(?:-\|-\|-|\|\|)$/, 'a request without an upstream has none');
    $_->run for @apps[ 2, 3 ];
};

# With a long interval no check would come in time to find out anew what was known. A server that is
# not checked is down.
subtest 'what verdicts outlive' => sub {
    my $port = $t->free_port;
    my $configure = sub {
        my ($check, $more) = @_;
        $more //= '';
        return $t->expand(<<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    upstream app {
        server ${\$apps[0]->address} max_fails=0;
        server ${\$apps[1]->address} max_fails=0;
        check $check type=http default_down=true;
        check_http_send "HEAD / HTTP/1.0\\r\\n\\r\\n";
        $more
    }
    upstream posted { server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:$port;
        location / { proxy_pass http://app; }
        location /posted { proxy_pass http://posted; }
        location /check { check_status; }
        location /dyups/ { dyups_interface; }
    }
}
EOF
    };
    my $often = 'interval=100 rise=1 fall=1 timeout=3000';
    my $seldom = 'interval=3600000 rise=3 fall=4 timeout=2000';
    my $nginx = $t->another_nginx($configure->($often))->run;
    my $reload = sub {
        my $name = shift;
        $t->write_file("$nginx->{name}/nginx.conf", $configure->(@_));
        return ok($nginx->reload, $name);
    };
    my $is = sub {
        my %is = map { ("$_->{upstream} $_->{name}" => $_->{status}) } @{ json(http_get($port, '/check?format=json')->{body})->{servers}{server} };
        return join ' ', map { my $name = $_; map { $is{ "$name " . $_->address } // '-' } @apps[ 0, 1 ] } qw(app posted);
    };
    my $serves = sub {
        my $name = shift;
        is($is->(), 'up down up down', "$name: the same verdicts");
        my %answers = map { http_get($port, $_ % 2 ? '/' : '/posted')->{body} => 1 } 1 .. 8;
        is(join('', keys %answers), 'hello world by ' . $apps[0]->address . "\n", 'of which requests know');
    };
    my $post = sub {
        my ($name, $check) = @_;
        my $body = join ' ', "check $check type=http default_down=true;", map { "server ${\$_->address} max_fails=0;" } @apps[ 0, 1 ];
        return is(http('POST', $port, '/dyups/upstream/posted', body => $body)->{status}, 200, $name);
    };

    $apps[1]->kill;
    $post->('a list is posted', $often);
    wait_until { $is->() eq 'up down up down' } 15, 'one is up, one down';
    $reload->('a reload with a long interval, and other counts', $seldom);
    $post->('the same is posted', $seldom);
    $serves->('then');
    my $since = time;
    is(scalar($nginx->kill_worker($_)), 1, 'a worker is killed') for $nginx->workers;
    $serves->('then');
    $reload->('another reload', $seldom);
    $serves->('then');
    # Early checks would hide that verdicts were lost.
    note scalar($apps[0]->requests('HEAD', $since)) . ' checks meanwhile';
    $reload->('a short interval', $often);
    $post->('the same is posted', $often);
    $serves->('then');
    $apps[1]->run;
    wait_until { $is->() eq 'up up up up' } 15, 'checks go on';

    # Else a reload with another question would take all servers out for a while.
    $reload->('something else is asked', $often =~ s/fall=1/fall=5/r, 'check_http_expect_alive 404;');
    is($is->(), 'up up up up', 'the last verdict holds until there is another');
    wait_until { $is->() eq 'down down up up' } 15, 'then that holds';
    $nginx->stop;
};

$t->done;
