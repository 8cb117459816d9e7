#!/usr/bin/perl

# What README.md says, and the files of nginx-conf/: every block of the one and every file of the
# other is run, and what is shown is compared.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my $consul = $t->consul;
my $readme = slurp('README.md');

# Addresses as they are written there, and as this test has them.
my %address = (
    '127.0.0.1:8500' => $consul->address,
    (map { ("127.0.0.1:$_" => '127.0.0.1:' . $t->free_port) } 8080, 8081, 9000, 9001, 9002),
    (map { ($_ => $t->testdir . '/' . s{.*/}{}r) } '/run/upsync/api.sock', '/run/app-1.sock'),
);
# Files that nginx.conf names: a certificate, and its key.
my ($key, $certificate) = map { $t->testdir . "/tls.$_" } qw(key crt);
my %tls = map { ("/etc/nginx/$_->[0]" => $_->[1]) }
    ['ca.crt', $certificate], ['client.crt', $certificate], ['client.key', $key];
my $made = !system("openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=app.example.com"
    . " -addext subjectAltName=DNS:app.example.com -keyout $key -out $certificate 2>/dev/null");
# How many seconds a command that only asks is run again.
my $patience = 15;
my $written = join '|', map { quotemeta } keys %address;
my %written = reverse %address;
my $ours = join '|', map { quotemeta } keys %written;

sub to_ours {
    my $text = shift;
    $text =~ s/($written)(?!\d)/$address{$1}/g;
    # As Consul's services have it, and Slardar's servers.
    $text =~ s/((?:"Address"|"host"): "127\.0\.0\.1", "[Pp]ort": )(\d+)/$1 . substr $address{"127.0.0.1:$2"}, 10/ge;
    return $text;
}

sub to_written { my $text = shift; $text =~ s/($ours)(?!\d)/$written{$1}/g; return $text }

# Without what is another each time.
sub timeless { return $_[0] =~ s/\b\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d(\.\d{3}Z)?/DATE$1TIME/gr }

sub slurp {
    my $path = shift;
    open my $file, '<', $path or die "$path: $!\n";
    local $/;
    return scalar <$file>;
}

# The blocks of README.md: {language, line, text}.
sub blocks {
    my (@blocks, $block);
    my $line = 0;
    for (split /^/, $readme) {
        $line++;
        if ($block) {
            /^```$/ ? undef $block : ($block->{text} .= $_);
        } elsif (/^```(.*)$/) {
            push @blocks, $block = { language => $1, line => $line, text => '' };
        }
    }
    return @blocks;
}

# A whole configuration, around what is part of one, that can run in a folder of its own.
sub configuration {
    my $text = shift;
    if ($text !~ /^http \{/m) {
        my ($name) = $text =~ /^upstream (\w+)/m;
        my $server = $name ? "location / { proxy_pass http://$name; }\nlocation = /upstream_list { upstream_show; }\n" : '';
        my $http = $text =~ /^location/ ? '' : $text;
        $server = $text unless $http;
        $server = $http =~ /^server /m ? '' : "server {\nlisten 127.0.0.1:8080;\n$server}\n";
        $server .= "server { listen 127.0.0.1:8081; location / { dyups_interface; } }\n"
            if $http =~ /^(?:dyups|    dyups )/m;
        my $backends = join '', map { "server { listen $_; return 200 \"hello world by $_\\n\"; }\n" }
            '127.0.0.1:9000', '127.0.0.1:9001';
        $text = "load_module modules/ngx_http_upsync_module.so;\nerror_log error.log notice;\npid nginx.pid;\n"
            . "events {}\nhttp {\n$http\n$server$backends}\n";
    }
    my ($module, $http) = ($t->module, $t->globals_http);
    my $user = join "\n", 'daemon off;', grep { /^user / } split /\n/, $t->globals;
    $text =~ s/^load_module \S+;/load_module $module;\n$user/m;
    $text =~ s/^http \{/http {\n$http/m;
    return to_ours($text);
}

# Runs an nginx with a configuration, and nothing in Consul.
my $nginx;

sub run_nginx {
    my ($text, %files) = @_;
    $nginx->stop if $nginx;
    $consul->delete('/v1/kv/?recurse');
    $consul->deregister_service($_) for keys %{ json($consul->get('/v1/agent/services')->{body}) };
    $nginx = $t->another_nginx(configuration($text));
    $t->write_file(substr("$nginx->{dir}/$_", length($t->testdir) + 1), $files{$_}) for keys %files;
    return $nginx->run;
}

my $has_openssl = !system('openssl version >/dev/null 2>&1');

sub shell {
    my $command = to_ours(shift);
    # Without curl's progress.
    $command =~ s/\bcurl /curl -s /g;
    $command =~ s/"(\w+):\$\(openssl passwd -apr1 (\w+)\)"/"'$1:" . crypt($2, 'ab') . "'"/e unless $has_openssl;
    open my $pipe, '-|', 'bash', '-c', "cd '$nginx->{dir}' && $command" or die "bash: $!\n";
    my $output = do { local $/; <$pipe> } // '';
    close $pipe;
    # Fields of an answer's head have them.
    $output =~ s/\r$//mg;
    return to_written($output);
}

# Runs the commands of a console block. nginx follows Consul and checks servers in its own time, so
# there those that only ask are run until they show what they should. What is posted is there at once.
sub console {
    my ($text, $line, $conf) = @_;
    my @parts = split /^\$ /m, $text;
    my $waits = $text =~ /127\.0\.0\.1:8500/ || $conf =~ /^ +check /m;
    shift @parts;
    for (@parts) {
        my ($command, $expected) = split /\n/, $_, 2;
        ($expected = timeless($expected)) =~ s/\s+$//;
        my $output;
        wait_until {
            ($output = timeless(shell($command))) =~ s/\s+$//;
            $output eq $expected || !$waits || $command =~ / -[Xd] /;
        } $patience;
        is($output, $expected, "README.md:$line: $command");
    }
    return;
}

# What is another in an answer of JSON than in what is shown: keys, and the kinds of values. What is
# null in the one may be anything in the other.
sub unlike_json {
    my ($shown, $answer, $path) = @_;
    return () unless defined $shown && defined $answer;
    return "$path: another kind" if ref $shown ne ref $answer;
    if (ref $shown eq 'HASH') {
        my ($keys, $others) = map { join ' ', sort keys %$_ } $shown, $answer;
        return "$path: $keys, not $others" if $keys ne $others;
        return map { unlike_json($shown->{$_}, $answer->{$_}, "$path.$_") } sort keys %$shown;
    }
    return map { unlike_json($shown->[0], $_, $path . '[]') } @$answer if ref $shown eq 'ARRAY';
    my ($is_text, $other) = map { !/^-?[\d.]+$/ || 0 } $shown, $answer;
    return $is_text != $other ? "$path: $shown, not $answer" : ();
}

subtest 'README.md' => sub {
    my %targets = map { $_ => 1 } slurp('Makefile') =~ /^([a-z-]+):/mg;
    my ($running, $last) = ('', '');
    for my $block (blocks()) {
        my ($language, $line, $text) = @{$block}{qw(language line text)};
        if ($language eq 'sh') {
            for (split /\n/, $text) {
                my ($target) = /^make ([a-z-]+)(?: [A-Z_]+=\S+)*$/;
                ok($target && $targets{$target}, "README.md:$line: $_");
            }
        } elsif ($language eq 'nginx') {
            # A dump file that is included has to be there.
            $t->write_file('included.conf', "server 127.0.0.1:9000;\n");
            (my $conf = $text) =~ s{/etc/nginx/app\.conf}{$t->testdir . '/included.conf'}ge;
            SKIP: {
                my $has_files = $conf =~ s{(/etc/nginx/\w+\.(?:crt|key))}{$tls{$1} // $1}ge;
                skip("README.md:$line: no openssl", 2) if $has_files && !$made;
                my ($status, $output) = $t->nginx_t(configuration($conf));
                is($status, 0, "README.md:$line: nginx -t") or diag($output);
                unlike($output, qr/\[warn\]/, 'without a warning');
            }
            $last = $text;
        } elsif ($language eq 'console') {
            run_nginx($last) if $running ne $last;
            $running = $last;
            console($text, $line, $last);
        } elsif ($language eq 'json') {
            # It is what the status page of the configuration above answers.
            my ($page) = $running =~ m{location = (/\S+) \{\n\s+upsync_status;};
            my $answer = shell("curl 'http://127.0.0.1:8080$page?format=json'");
            is_deeply([unlike_json(json($text), json($answer), '')], [], "README.md:$line: as $page") or diag($answer);
        } else {
            fail("README.md:$line: a block of another language ($language) is not tested");
        }
    }
};

subtest 'directives' => sub {
    my $dyups = slurp('src/conf/dyups.rs');
    my $source = slurp('src/conf/directives.rs') . $dyups;
    my %known = map { $_ => 1 } $source =~ /^\s*(?:command\()?c"([a-z_]+)",/mg, $source =~ /command\(c"([a-z_]+)"/g,
        slurp('src/conf/check.rs') =~ /\bc"([a-z_]+)"/g;
    my %documented = map { $_ => 1 } $readme =~ /^### ([a-z_]+)$/mg;
    $known{least_time} = 1; # ours where nginx lacks it
    is_deeply(\%documented, \%known, 'all and only they are documented');
    for (sort keys %documented) {
        like($readme, qr/^### $_\n\n- \*\*Syntax:\*\* `$_ [^`]*;`\n- \*\*Default:\*\* .+\n- \*\*Context:\*\* .+\n/m, $_)
            unless $_ eq 'upstream_show';
    }
    my @obsolete = sort $dyups =~ /^\s*\(c"([a-z_]+)", "/mg;
    my ($table) = $readme =~ /^### Without effect\n(.*?)^##/ms;
    is(scalar @obsolete, 5, 'directives without effect');
    is_deeply([$table =~ /^\| `([a-z_]+)` \| .+ \|$/mg], \@obsolete, 'all and only they are in their table');
    my @parameters = slurp('src/conf/upsync.rs') =~ /^\s+"([a-z_]+)" => &mut words/mg;
    cmp_ok(@parameters, '>', 4, 'parameters of upsync');
    ok($readme =~ /^- \*\*Syntax:\*\* `upsync .*\b$_=/m, $_) for @parameters;
    my ($check) = $readme =~ /^### check\n(.*?)^###/ms;
    my ($forms) = slurp('src/grammar/check/form.rs') =~ /^static CHECK_PARAMETERS(.*?)^\];/ms;
    my @of_check = sort $forms =~ /name: "(\w+)"/g;
    is(scalar @of_check, 8, 'parameters of check');
    is_deeply([sort $check =~ /\[(\w+)=[^\]]+\]/g], \@of_check, 'all and only they are in its syntax');
    is_deeply([sort $check =~ /^- `(\w+)=/mg], \@of_check, 'and told');
};

# The first column of the tables below a heading.
sub column {
    my $heading = shift;
    my ($section) = $readme =~ /^### \Q$heading\E\n(.*?)^##/ms;
    return $section =~ /^\| (`.*?) \|/mg;
}

# The body of a function, or of an impl.
sub body { my ($file, $start) = @_; return slurp($file) =~ /^( *)\Q$start\E(.*?)^\1\}/ms ? $2 : '' }

subtest 'tables of all there is' => sub {
    my @kinds = body('src/model/check.rs', 'pub fn name(self)') =~ /"(\w+)"/g;
    cmp_ok(@kinds, '>', 8, 'types of checks');
    is_deeply([column('What is asked')], [map { "`$_`" } @kinds], 'in their order');
    my @variables = slurp('src/module/variables.rs') =~ /\(c"(\w+)",/g;
    cmp_ok(@variables, '>', 2, 'variables');
    is_deeply([column('Variables')], [map { "`\$$_`" } @variables], 'in their order');
    my @reasons = body('src/model/reason.rs', 'impl fmt::Display for Reason') =~ /(?:write_str\(|write!\(f, )"(.*?)"/g;
    cmp_ok(@reasons, '>', 20, 'reasons');
    my @texts = map { s/\b(?:STAGE|ERROR|N)\b/{}/gr } column('Why a check failed');
    # One reason may say a name or a number.
    my %reasons = map { ('`' . s/\{\w*\}/{}/gr . '`' => 1) } @reasons;
    is_deeply([sort @texts], [sort keys %reasons], 'all and only they');
    my @series = slurp('src/api/status/prometheus.rs') =~ /text\.(?:gauge|counter|untyped)\(\s*"(\w+)"/g;
    cmp_ok(@series, '>', 20, 'series');
    my @shown = grep { /^upsync_/ } map { /`(\w+)`/g } column('upsync_status');
    is_deeply([sort @shown], [sort @series], 'all and only they');
    my ($who) = $readme =~ /^### Who keeps a server out\n(.*?)^##/ms;
    my @outs = map { /`(\w+)`/g } map { (split / \| /)[2] } (split /\n(?=\|)/, $who)[3 .. 6];
    my @words = body('src/model/out.rs', 'pub fn name(self)') =~ /"(\w+)"/g;
    is_deeply([sort @outs], [sort @words], 'who keeps a server out');
};

# Texts that the code has: what stands for something else is left out, the rest is there.
sub in_source {
    my ($files, @texts) = @_;
    my $source = join '', map { slurp($_) } glob $files;
    # As the compiler reads them.
    $source =~ s{^\s*//.*}{}mg;
    $source =~ s/\\"/"/g;
    $source =~ s/\\\n\s+//g;
    for my $text (@texts) {
        my @parts = grep { /\w{3}/ }
            split /…|\bN\b|"?\b(?:NAME|KEY|FILE|FOLDER|CLIENT|ADDRESS)\b"?|HOST:PORT|\/PATH/, $text;
        my @missing = grep { index($source, $_) < 0 } map { s/^[\s,:()]+|[\s,:()]+$//gr } @parts;
        is_deeply(\@missing, [], $text);
    }
    return;
}

subtest 'log lines' => sub {
    my ($section) = $readme =~ /^## What the log says\n(.*?)^## /ms;
    my @lines = map { /`(.*?)`/g } $section =~ /^\| (`.*?`) \|/mg;
    cmp_ok(@lines, '>', 8, 'lines');
    in_source('src/*.rs src/*/*.rs src/*/*/*.rs', @lines);
};

subtest 'answers' => sub {
    my ($section) = $readme =~ /^### Answers\n(.*?)^## /ms;
    my @texts = map { /`(.*?)`/g } $section =~ /^\| [\d, ]+ \| (`.*?`) \|/mg;
    cmp_ok(@texts, '>', 10, 'texts');
    in_source('src/api/*.rs src/model/name.rs src/model/body.rs', @texts);
    my %codes = map { $_ => 1 } slurp('src/api/answer.rs') =~ /dialect, (\d{3}),/g;
    my %table = map { $_ => 1 } 200, map { /\d+/g } $section =~ /^\| ([\d, ]+) \|/mg;
    is_deeply(\%table, \%codes, 'all and only codes that there are');
};

subtest 'links' => sub {
    for my $target ($readme =~ /\]\(([^)]+)\)/g) {
        if ($target =~ /^#(.*)/) {
            my $anchor = $1;
            my @headings = map { lc(s/[^\w -]//gr =~ s/ /-/gr) } $readme =~ /^##+ (.*)$/mg;
            ok((grep { $_ eq $anchor } @headings), $target);
        } elsif ($target !~ /^https:/) {
            ok(-e $target, $target);
        }
    }
    my @files = glob 'nginx-conf/*.conf';
    ok(index($readme, "($_)") > 0, "$_ is named") for @files;
};

# What each file of nginx-conf/ does: [what to do, command, its output] in turn.
my $one = 'server 127.0.0.1:9000 weight=1 max_fails=2 fail_timeout=10s;';
my $put = 'curl -X PUT http://127.0.0.1:8500/v1/kv/upstreams';
my $list = 'curl http://127.0.0.1:8080/upstream_list';
my $get = 'curl http://127.0.0.1:8080/';
my $hello = 'hello world by 127.0.0.1:9000';
my $register = q(curl -X PUT -d '{"Name": "web", "ID": "a", "Address": "127.0.0.1", "Port": 9000, "Weights": {"Passing": 5, "Warning": 2}, "Check": {"CheckID": "a", "TTL": "9m", "Status": "warning"}}' http://127.0.0.1:8500/v1/agent/service/register);
my $kv = <<"EOF";
\$ $put/app/127.0.0.1:9000
true
\$ $list?app
Upstream name: app; Backend server count: 1
        $one
\$ $get
$hello
EOF
my $empty = "\$ curl -X DELETE http://127.0.0.1:8500/v1/kv/upstreams/app/127.0.0.1:9000\ntrue\n";

my $api = 'http://127.0.0.1:8081';
my $switch = 'curl --unix-socket /run/upsync/api.sock';
my $switched = 'http://localhost/upstream/app.example.com';

sub service {
    my $weight = shift;
    return "\$ $register\n\$ $list?web\nUpstream name: web; Backend server count: 1\n"
        . "        server 127.0.0.1:9000 weight=$weight max_fails=2 fail_timeout=10s;\n\$ $get\n$hello\n";
}

my %files = (
    'kv.conf' => $kv,
    'keepalive.conf' => $kv,
    'balancing.conf' => $kv =~ s/\?app\nUpstream name: app/?pages\nUpstream name: pages/r . <<"EOF",
\$ curl http://127.0.0.1:8080/near
$hello
\$ for i in 1 2 3 4 5 6 7 8; do curl -s http://127.0.0.1:8080/fixed; done | sort -u
$hello
hello world by 127.0.0.1:9001
EOF
    'catalog.conf' => service(5),
    'health.conf' => service(2),
    'dump.conf' => "$kv\$ cat app.conf\n$one\n",
    'strict.conf' => "$kv$empty\$ $list?app\nUpstream name: app; Backend server count: 0\n\$ $get -o /dev/null -w '%{http_code}'\n502\n",
    'variable.conf' => "$kv\$ $put/beta/127.0.0.1:9001\ntrue\n\$ $get -H 'Host: beta.example.com'\nhello world by 127.0.0.1:9001\n",
    'tls.conf' => "\$ $put/app/127.0.0.1:9001\ntrue\n\$ $get\nhello by tls\n",
    # Its own test plays with it.
    'demo.conf' => $kv,
    'checks.conf' => <<"EOF",
\$ $put/app/127.0.0.1:9002
true
\$ $put/app/127.0.0.1:9001
true
\$ $put/app/127.0.0.1:9000
true
\$ curl 'http://127.0.0.1:8080/check_status?status=down' | cut -d, -f2-4,7
app,127.0.0.1:9001,down,http
\$ curl http://127.0.0.1:8080/metrics | grep ^upsync_check_up | sort
upsync_check_up{upstream="app",server="127.0.0.1:9000"} 1
upsync_check_up{upstream="app",server="127.0.0.1:9001"} 0
upsync_check_up{upstream="app",server="127.0.0.1:9002"} 1
\$ for i in 1 2 3 4; do $get; done | sort | uniq -c
      2 $hello
      2 hello world by 127.0.0.1:9002
\$ tail -n 4 access.log | cut -d' ' -f5-8 | sort | uniq -c
      2 200 127.0.0.1:9000 app consul
      2 200 127.0.0.1:9002 app consul
\$ tail -n 4 access.log | cut -d' ' -f9 | sort | uniq -c
      2 -
      2 check
\$ grep -o 'server [0-9.:]* is down: .*' error.log
server 127.0.0.1:9001 is down: body does not match
\$ curl -X DELETE http://127.0.0.1:8500/v1/kv/upstreams/app/127.0.0.1:9000
true
\$ curl -X DELETE http://127.0.0.1:8500/v1/kv/upstreams/app/127.0.0.1:9002
true
\$ grep -o 'checks would take .*' error.log
checks would take 1 of 1 servers out: their verdicts are ignored
\$ $get
Maintenance until Monday
\$ curl -D - -o /dev/null http://127.0.0.1:8080/upsync_status | grep -o "^Content-Security-Policy: default-src 'none'"
Content-Security-Policy: default-src 'none'
EOF
    'checks-tls-grpc.conf' => <<"EOF",
\$ curl http://127.0.0.1:8080/check_status | grep ',up,[1-9]' | cut -d, -f2-4,7
app,127.0.0.1:9001,up,https
calls,127.0.0.1:9002,up,grpc
\$ $get
hello by tls
\$ curl --http2-prior-knowledge $api/ -o /dev/null -w '%{http_code}'
200
EOF
    'posted.conf' => <<"EOF",
\$ echo "admin:\$(openssl passwd -apr1 secret)" >> users
\$ $get -H 'Host: app.example.com'
$hello
\$ curl -o /dev/null -w '%{http_code}' -d 'server 127.0.0.1:9001;' $api/upstream/app.example.com
401
\$ curl -u admin:secret -d 'server 127.0.0.1:9001;' $api/upstream/app.example.com
success
\$ $get -H 'Host: app.example.com'
hello world by 127.0.0.1:9001
\$ $get
$hello
\$ curl $api/list
any
app.example.com
EOF
    'switch.conf' => join('', map { "\$ $_->[0]\nsuccess\n\$ $get -H 'Host: app.example.com'\nhello world by $_->[1]\n" }
        ["$switch -d 'server unix:/run/app-1.sock;' $switched", 'a socket'],
        ["$switch -d 'server 127.0.0.1:9001;' $switched", '127.0.0.1:9001'],
        ["$switch -d 'server upstream:green;' $switched", '127.0.0.1:9002'],
        ["$switch -X DELETE $switched", '127.0.0.1:9000']),
    'state.conf' => <<"EOF",
\$ curl -o /dev/null -w '%{http_code}' -d 'server 127.0.0.1:9000;' $api/upstream/app.example.com
405
\$ curl -o /dev/null -w '%{http_code}' -H 'Origin: http://example.com' -d 'server 127.0.0.1:9000;' $api/write/upstream/app.example.com
403
\$ curl -d 'server 127.0.0.1:9000;' $api/write/upstream/app.example.com
success
\$ cat lists/app.example.com.conf
upstream app.example.com {
    server 127.0.0.1:9000 weight=1 max_fails=1 fail_timeout=10s;
}
EOF
);

is_deeply([sort keys %files], [map { s{.*/}{}r } glob 'nginx-conf/*.conf'], 'all files of nginx-conf/ are run');

# What gRPC's health service answers: a message that is not compressed, of two bytes: field 1 is 1.
my $serving = $t->write_file('SERVING', pack 'CNCC', 0, 2, 8, 1);
my $health = <<"EOF";
location /grpc.health.v1.Health/ { error_page 404 405 =200 /serving; }
location = /serving { internal; alias $serving; default_type application/grpc; add_trailer grpc-status 0; }
EOF

# Backends of the files: 9000 and 9002 speak HTTP; 9001, too, or TLS; 9002 also gRPC.
sub backends {
    my $file = shift;
    my $tls = $file =~ /tls/;
    my $second = $tls ? "ssl_certificate $certificate; ssl_certificate_key $key; return 200 'hello by tls\\n';"
        : $file eq 'checks.conf' ? "return 200 'Maintenance until Monday\\n';" : '';
    my $ssl = $tls ? 'ssl' : '';
    my ($http2, $grpc) = $file =~ /grpc/ ? ('http2', $health) : ('', '');
    my $text = configuration(<<"EOF");
load_module x;
error_log error.log notice;
pid nginx.pid;
events {}
http {
    server { listen 127.0.0.1:9000; return 200 "hello world by 127.0.0.1:9000\\n"; }
    server { listen 127.0.0.1:9001 $ssl; $second return 200 "hello world by 127.0.0.1:9001\\n"; }
    server { listen 127.0.0.1:9002 $http2; $grpc location / { return 200 "hello world by 127.0.0.1:9002\\n"; } }
    server { listen unix:/run/app-1.sock; return 200 "hello world by a socket\\n"; }
}
EOF
    return $t->another_nginx($text)->run;
}

for my $file (sort keys %files) {
    subtest $file => sub {
        plan(skip_all => 'no openssl') if $file =~ /tls/ && !$made;
        my $text = slurp("nginx-conf/$file");
        $nginx->stop if $nginx;
        undef $nginx;
        my $backends = backends($file);
        my %more = $file =~ /tls/ ? ('ca.crt' => slurp($certificate)) : ();
        $more{'app.conf'} = to_ours("server 127.0.0.1:9000;\n") if $file eq 'demo.conf';
        if ($file eq 'strict.conf') {
            my $nobody = '127.0.0.1:' . $t->free_port;
            my $mute = $t->another_nginx(configuration($text =~ s/127\.0\.0\.1:8500/$nobody/r));
            is($mute->start->exited, 1, 'nginx does not start without Consul');
            $mute->expect_log(qr/strong_dependency=on/);
            like($mute->log . $mute->output, qr/\[emerg\].* upstream "app": .*"upsync" has strong_dependency=on/, 'and says so');
        }
        run_nginx($text, %more);
        console($files{$file}, $file, $text);
        if ($file eq 'dump.conf') {
            $nginx->stop;
            $consul->pause;
            $nginx->run;
            is(shell("$list?app"), "Upstream name: app; Backend server count: 1\n        $one\n", 'started without Consul');
            is(shell($get), "$hello\n", 'it serves');
            $consul->resume;
        }
        if ($file eq 'state.conf') {
            $nginx->stop;
            $nginx->run;
            is(shell("curl $api/list"), "any\napp.example.com\n", 'the list is there again');
            is(shell("$get -H 'Host: app.example.com'"), "$hello\n", 'it serves');
        }
        $nginx->stop;
        undef $nginx;
        $backends->stop;
    };
}

$t->done;
