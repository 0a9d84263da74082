# -*- coding: utf-8 -*-
"""Writes cases.json: ini files, and what Autotest makes of them.

Runs under Python 2.7 only, whose ConfigParser is what Autotest reads its configuration with:

    python2.7 tests/config_cases/generate.py

Settings below does what Autotest's client/shared/settings.py does (parse_config_file, merge_configs, get_value, _convert_value).
Bytes are written as the characters U+0000 to U+00FF. For each case there is

  error   name of the exception that reading and merging ends with, and `lines`, the lines it names; or
  values  section -> key -> {"get": text} or {"get_error": exception}, and what get_value makes of it as
          str, int, bool and list ({"default": true} if it falls back on the default).
"""
import ConfigParser
import io
import json
import os
import shutil
import sys
import tempfile

S = '[SCHEDULER]\n'

# name, global_config.ini, shadow_config.ini or None
CASES = [
    ('colon', S + 'results_host: dumpster\n', None),
    ('equals', S + 'results_host=dumpster\n', None),
    ('no-space-after-colon', S + 'results_host:dumpster\n', None),
    ('first-separator-splits-colon', S + 'c : x = y\n', None),
    ('first-separator-splits-equals', S + 'c = x : y\n', None),
    ('value-with-url', S + 'u: http://host:80/a=b\n', None),
    ('no-final-newline', S + 'results_host: dumpster', None),
    ('crlf', '[SCHEDULER]\r\nresults_host: dumpster\r\ndrones: a,\r\n  b\r\n', None),
    ('cr-inside-a-line', S + 'a: 1\rb: 2\n', None),
    ('tab-separators', S + 'results_host\t:\tdumpster\t\n', None),
    ('vertical-tab-and-form-feed', S + 'a:\x0b\x0cx\x0b\x0c\n', None),
    ('option-names-lower-cased', S + 'DRONE1_Username: Bob\n', None),
    ('option-case-duplicates', S + 'DRONE1_username: a\ndrone1_USERNAME: b\n', None),
    ('section-names-case-sensitive', '[scheduler]\na: 1\n[SCHEDULER]\na: 2\n', None),
    ('section-names-space-sensitive', '[ SCHEDULER ]\na: 1\n[SCHEDULER]\na: 2\n', None),
    ('text-after-section', '[SCHEDULER] ; the scheduler\na: 1\n', None),
    ('option-after-section-ignored', '[SCHEDULER] b: 2\na: 1\n', None),
    ('brackets-in-section', '[a[b]c]\nx: 1\n', None),
    ('empty-section', '[A]\n[B]\nx: 1\n', None),
    ('empty-section-name', '[]\nx: 1\n', None),
    ('empty-section-name-inside', S + 'a: 1\n[]\n', None),
    ('option-that-looks-like-a-section', S + '[]: 1\n', None),
    ('unclosed-section', '[A]\nx: 1\n[SCHEDULER\ny: 2\n', None),
    ('unclosed-section-with-colon', S + '[x: 2\n', None),
    ('sections-merge', '[A]\nx: 1\n[B]\nx: 2\n[A]\ny: 3\n', None),
    ('duplicate-key-last-wins', S + 'a: 1\na: 2\n', None),
    ('duplicate-key-across-sections', '[A]\nx: 1\ny: 1\n[B]\nz: 1\n[A]\nx: 2\n', None),
    ('duplicate-then-continuation', S + 'a: 1\na: 2\n  3\n', None),
    ('key-with-blanks', S + 'max transfer processes: 5\n', None),
    ('key-with-brackets', S + 'a[0]: 5\n', None),
    ('key-with-backslash', S + 'a\\: 5\n', None),
    ('inline-comment', S + 'k: x ; note\n', None),
    ('inline-comment-tab', S + 'k: x\t; note\n', None),
    ('semicolon-without-space', S + 'k: x;y\n', None),
    ('only-first-semicolon-counts', S + 'k: a;b ; note\n', None),
    ('hash-is-no-inline-comment', S + 'k: x # note\n', None),
    ('value-is-semicolon', S + 'k: ; x\n', None),
    ('value-is-semicolon-trailing-blank', S + 'k: ; x \n', None),
    ('value-is-semicolon-crlf', '[SCHEDULER]\r\nk: ; x\r\n', None),
    ('value-is-lone-semicolon', S + 'k: ;\n', None),
    ('semicolon-in-key', S + 'a;b: 1\n', None),
    ('full-line-comments', '# a\n; b\n' + S + '# c: 1\n;d: 2\na: 1\n', None),
    ('rem-comments', S + 'rem a: 1\nREM b: 2\nReM\tc: 3\nrem\na: 1\n', None),
    ('rem-before-any-section', 'rem hello\n' + S + 'a: 1\n', None),
    ('rem-as-key', S + 'rem = x\nrem: y\nremark: z\n', None),
    ('comment-between-continuations', S + 'a: 1\n# no\n  2\n\n  3\n', None),
    ('indented-comment-continues', S + 'a: 1\n  # x\n', None),
    ('indented-semicolon-continues', S + 'a: 1\n  ; x\n', None),
    ('indented-rem-continues', S + 'a: 1\n  rem x\n', None),
    ('continuation-joins', S + 'drones: d1,\n  d2,\n\td3\n', None),
    ('continuation-keeps-inline-comment', S + 'drones: d1,\n  d2 ; no\n', None),
    ('continuation-swallows-key', S + 'drones: localhost\n results_host: dumpster\n', None),
    ('continuation-swallows-section', S + 'drones: localhost\n [COMMON]\nx: 1\n', None),
    ('continuation-of-blank', S + 'a:\n  1\n  2\n', None),
    ('continuation-of-empty-quotes', S + 'a: ""\n  1\n', None),
    ('continuation-by-form-feed', S + 'a: 1\n\x0c2\n', None),
    ('blank', S + 'a:\nb: \nc=\n', None),
    ('blank-continuation-line', S + 'a: 1\n   \n  2\n', None),
    ('empty-quotes', S + 'a: ""\nb: \'\'\n', None),
    ('quotes-kept', S + 'a: "x"\nb: \'y\'\nc: "x" y\n', None),
    ('unbalanced-quote', S + 'a: "x\nb: y\'s\n', None),
    ('backslashes-kept', S + 'a: C:\\new\\table\\x41\n', None),
    ('backslash-at-end', S + 'a: x\\\nb: 2\n', None),
    ('backslash-and-quote', S + 'a: \\"x\\"\n', None),
    ('value-begins-with-separator', S + 'a:: 1\nb== 2\nc:= 3\n', None),
    ('ipv6-key', S + 'fe80::1_username: bob\n', None),
    ('host-port-key', S + 'host:22_username: bob\n', None),
    ('host-profile-key', S + 'host#p_username: bob\n', None),
    ('dotted-key', S + 'dumpster.example.com_username: bob\n', None),
    ('stray-asterisks', S + 'dumpster_username: offloader**\n', None),
    ('host-begins-with-dash', S + 'results_host: -oProxyCommand=x\n', None),
    ('utf8-value', S + 'a: caf\xc3\xa9\n', None),
    ('latin1-value', S + 'a: caf\xe9\nb: 1\n', None),
    ('latin1-comment', '# caf\xe9\n' + S + 'a: 1\n', None),
    ('nbsp-key', S + 'a: 1\n\xc2\xa0results_host: dumpster\n', None),
    ('nbsp-at-value-end', S + 'results_host: dumpster\xc2\xa0\n', None),
    ('non-ascii-key-not-lowered', S + '\xc3\x89T\xc3\x89: 1\n', None),
    ('nul', S + 'a: x\x00y\n', None),
    ('line-separator-is-no-line-end', S + 'a: x\xe2\x80\xa8y\n', None),
    ('empty-file', '', None),
    ('only-comments', '# nothing\n', None),
    # exceptions
    ('first-key-indented', '[SCHEDULER]\n results_host: dumpster\n', None),
    ('first-key-indented-tab', '[SCHEDULER]\n\tresults_host: dumpster\n', None),
    ('manual-sample', '[SCHEDULER]\n max_processes_per_drone: 1000\n max_jobs_started_per_cycle: 100\n'
     ' max_parse_processes: 5\n max_transfer_processes: 50\n drones: localhost\n'
     ' drone_installation_directory: /usr/local/autotest\n results_host: dumpster\n'
     ' results_host_installation_directory:\n dumpster_username: offloader**\n'
     ' secs_to_wait_for_atomic_group_hosts: 600\n reverify_period_minutes: 0\n', None),
    ('manual-first-sample', '[SCHEDULER]\nresults_host: localhost\nresults_host_installation_directory:\n', None),
    ('manual-first-sample-with-bullet', '[SCHEDULER]\nresults_host: localhost\nresults_host_installation_directory:\n'
     '  \xe2\x80\xa2 results_host defines the host\n', None),
    ('indented-comment-first', '[SCHEDULER]\n  # x\na: 1\n', None),
    ('indented-section', ' [SCHEDULER]\na: 1\n', None),
    ('bare-word', S + 'a: 1\nfoo\n', None),
    ('bare-words', S + 'foo\na: 1\nbar\n  more\n', None),
    ('separator-first', S + ': 1\n', None),
    ('equals-first', S + '= 1\n', None),
    ('key-before-section', 'results_host: dumpster\n' + S, None),
    ('bare-word-before-section', 'hello\n' + S, None),
    ('byte-order-mark', '\xef\xbb\xbf' + S + 'a: 1\n', None),
    ('byte-order-mark-comment', '\xef\xbb\xbf# x\n' + S + 'a: 1\n', None),
    ('old-mac-line-ends', '[SCHEDULER]\ra: 1\rb: 2\r', None),
    # interpolation
    ('interpolate', S + 'top: /usr/local\nresults: %(top)s/results\n', None),
    ('interpolate-upper-case', S + 'Top: /x\nr: %(TOP)s/%(tOp)s\n', None),
    ('interpolate-default', '[DEFAULT]\ntop: /x\n' + S + 'r: %(top)s/r\n', None),
    ('interpolate-nested', S + 'a: 1\nb: %(a)s2\nc: %(b)s3\n', None),
    ('interpolate-name', S + 'a: %(__name__)s\n', None),
    ('interpolate-percent-pair', S + 'a: 1\nb: %(a)s 100%%\n', None),
    ('percent-literal', S + 'a: 100%\nb: 50%% %d\n', None),
    ('percent-stray', S + 'a: 1\nb: %(a)s 100%\n', None),
    ('percent-stray-inside', S + 'a: 1\nb: 5%; %(a)s\n', None),
    ('percent-pair-before-name', S + 'a: 1\nb: %%(a)s\n', None),
    ('interpolate-missing', S + 'a: %(nope)s\n', None),
    ('interpolate-other-section', '[A]\nx: 1\n' + S + 'a: %(x)s\n', None),
    ('interpolate-circle', S + 'a: %(b)s\nb: %(a)s\n', None),
    ('interpolate-itself', S + 'a: x%(a)s\n', None),
    ('interpolate-no-conversion', S + 'a: 1\nb: %(a)\n', None),
    ('interpolate-number-conversion', S + 'a: 1\nb: %(a)d\n', None),
    ('interpolate-unclosed', S + 'a: 1\nb: %(a\n', None),
    ('interpolate-empty-name', S + 'b: %()s\n', None),
    ('interpolate-multi-line', S + 'a: 1\nb: x\n  %(a)s\n', None),
    ('interpolate-blank', S + 'a:\nb: %(a)s\n', None),
    ('interpolate-depth-ten', S + ''.join('a%d: %%(a%d)s\n' % (i, i + 1) for i in range(9)) + 'a9: x\n', None),
    ('interpolate-depth-eleven', S + ''.join('a%d: %%(a%d)s\n' % (i, i + 1) for i in range(11)) + 'a11: x\n', None),
    # DEFAULT
    ('default-inherited', '[DEFAULT]\nx: 1\n[A]\ny: 2\n[B]\nx: 3\n', None),
    ('default-is-case-sensitive', '[default]\nx: 1\n[A]\ny: 2\n', None),
    ('default-after', '[A]\ny: 2\n[DEFAULT]\nx: 1\n', None),
    # types
    ('booleans', S + 'a: False\nb: false\nc: FALSE\nd: 0\ne: no\nf: off\ng: True\nh: falsey\n', None),
    ('integers', S + 'a: 50\nb: +5\nc: -5\nd: 007\ne: 5.0\nf: 5L\ng: 0x10\nh: 1_000\ni: 5 # five\nj: 1e3\nk: - 5\n', None),
    ('lists', S + 'a: x\nb: x, y ,z\nc: x,,y\nd: ,\ne: x y\nf: x,\n  y\n', None),
    # shadow
    ('shadow-overrides', S + 'a: 1\nb: 2\n', S + 'a: 3\n'),
    ('shadow-adds-key', S + 'a: 1\n', S + 'b: 3\n'),
    ('shadow-adds-section', S + 'a: 1\n', '[RESULTSFS]\nb: 3\n'),
    ('shadow-other-case', S + 'Results_Host: a\n', S + 'RESULTS_HOST: b\n'),
    ('shadow-blank-overrides', S + 'a: 1\n', S + 'a:\n'),
    ('shadow-only-comments', S + 'a: 1\n', '#[SCHEDULER]\n#a: 2\n'),
    ('shadow-empty', S + 'a: 1\n', ''),
    ('shadow-sees-not-global', S + 'x: 1\na: 1\n', S + 'a: %(x)s\n'),
    ('shadow-interpolates-itself', S + 'a: 1\n', S + 'x: 2\na: %(x)s\n'),
    ('global-sees-shadow', S + 'x: 1\na: %(x)s\n', S + 'x: 2\n'),
    ('global-sees-shadow-only', S + 'a: %(x)s\n', S + 'x: 2\n'),
    ('shadow-default-is-its-own', S + 'a: 1\n[B]\nb: 1\n', '[DEFAULT]\na: 9\n' + S + 'c: 1\n'),
    ('shadow-default-alone', S + 'a: 1\n', '[DEFAULT]\na: 9\n'),
    ('global-default-under-shadow', '[DEFAULT]\na: 9\n', S + 'c: 1\n'),
    ('shadow-percent', S + 'a: 1\n', S + 'a: 50%\n'),
    ('shadow-percent-pair', S + 'a: 1\n', S + 'x: 5\na: %(x)s%%\n'),
    ('shadow-stray-percent', S + 'a: 1\n', S + 'x: 5\na: %(x)s%\n'),
    ('shadow-error-in-unread-section', S + 'a: 1\n', '[OTHER]\na: %(nope)s\n'),
    ('shadow-default-missing-name', S + 'a: 1\n', '[DEFAULT]\nx: %(nope)s\n'),
    ('shadow-bare-word', S + 'a: 1\n', S + 'mypassword\n'),
    ('shadow-key-indented', S + 'a: 1\n', '[SCHEDULER]\n a: 2\n'),
    ('shadow-before-section', S + 'a: 1\n', 'a: 2\n'),
    ('shadow-lower-case-default', S + 'a: 1\n', '[default]\na: 2\n'),
    ('shadow-lower-case-default-in-both', '[default]\na: 1\n', '[default]\na: 2\n'),
    ('shadow-sets-name', S + 'a: 1\n', S + '__name__: %(nope)s\nb: 2\n'),
    ('global-errors-in-order', '[SCHEDULER]\n a: 1\nfoo\n b: 1\n', None),
    ('shadow-continuation', S + 'drones: a\n', S + 'drones: b,\n  c\n'),
]


class Settings(object):
    def __init__(self, config_file, shadow_file):
        self.config = ConfigParser.ConfigParser()
        self.config.read(config_file)
        if os.path.exists(shadow_file):
            shadow_config = ConfigParser.ConfigParser()
            shadow_config.read(shadow_file)
            self.merge_configs(shadow_config)

    def merge_configs(self, shadow_config):
        sections = shadow_config.sections()
        for section in sections:
            if not self.config.has_section(section):
                self.config.add_section(section)
            options = shadow_config.options(section)
            for option in options:
                val = shadow_config.get(section, option)
                self.config.set(section, option, val)

    def get_value(self, section, key, type):
        try:
            val = self.config.get(section, key)
        except ConfigParser.Error:
            return {'default': True}
        if not val.strip():
            return {'default': True}
        sval = val.strip()
        if type == bool:
            return sval.lower() != 'false'
        if type == list:
            return [item.strip() for item in sval.split(',')]
        return type(sval)


def value_of(settings, section, key):
    value = {}
    try:
        value['get'] = settings.config.get(section, key)
    except Exception as e:
        value['get_error'] = e.__class__.__name__
    for type in (str, int, bool, list):
        try:
            value[type.__name__] = settings.get_value(section, key, type)
        except Exception as e:
            value[type.__name__] = {'error': e.__class__.__name__}
    return value


def values(settings):
    config = settings.config
    return dict((section, dict((key, value_of(settings, section, key)) for key in config.options(section)))
                for section in config.sections())


def lines_of(error):
    if isinstance(error, ConfigParser.MissingSectionHeaderError):
        return [error.lineno]
    if isinstance(error, ConfigParser.ParsingError):
        return [line for line, _ in error.errors]
    return []


def run(name, main, shadow):
    case = {'name': name, 'global': main, 'shadow': shadow}
    directory = tempfile.mkdtemp()
    try:
        paths = [os.path.join(directory, n) for n in ('global_config.ini', 'shadow_config.ini')]
        for path, content in zip(paths, (main, shadow)):
            if content is not None:
                with io.open(path, 'wb') as f:
                    f.write(content)
        try:
            case['values'] = values(Settings(*paths))
        except Exception as e:
            case['error'] = e.__class__.__name__
            case['lines'] = lines_of(e)
            case['in_shadow'] = getattr(e, 'filename', paths[0]) == paths[1]
    finally:
        shutil.rmtree(directory)
    return case


def main():
    assert sys.version_info[:2] == (2, 7), 'this needs Python 2.7'
    names = [case[0] for case in CASES]
    assert len(names) == len(set(names)), 'two cases have one name'
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'cases.json')
    lines = [json.dumps(run(*case), encoding='latin-1', sort_keys=True) for case in CASES]
    with open(path, 'w') as f:
        f.write('[\n' + ',\n'.join(lines) + '\n]\n')
    print('%d cases' % len(CASES))


if __name__ == '__main__':
    main()
