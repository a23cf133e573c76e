mod authority;
mod path;
mod proxy_protocol;
mod trace;
mod xfcc;
